//! How many requests in a row came to nothing. They are counted in the order in which they were begun: of many that are
//! under way, fast refusals arrive before the first slow answer, and such an endpoint is well.

use std::collections::BTreeMap;

/// What the outcome of one request says about the endpoint.
#[derive(Clone, Copy)]
enum Sign {
    Answered,
    Failed,
    /// Neither: a prompt that does not fit for example.
    Neither,
}

pub(super) struct Streak {
    /// So many in a row are too many.
    most: usize,
    /// Requests that may be under way at once.
    parallel: usize,
    /// Index of the first request whose outcome is not counted yet: one before it is still under way.
    next: usize,
    /// Outcomes that wait for those of earlier requests.
    ahead: BTreeMap<usize, Sign>,
    in_a_row: usize,
    /// Since the last answer, in the order they arrived.
    arrived_in_a_row: usize,
}

impl Streak {
    pub(super) fn new(most: usize, parallel: usize) -> Streak {
        Streak {
            most,
            parallel,
            next: 0,
            ahead: BTreeMap::new(),
            in_a_row: 0,
            arrived_in_a_row: 0,
        }
    }

    /// The requests are numbered from 0 again.
    pub(super) fn begin(&mut self) {
        self.next = 0;
        self.ahead.clear();
    }

    /// Request `i` was answered.
    pub(super) fn answered(&mut self, i: usize) {
        self.arrived_in_a_row = 0;
        self.note(i, Sign::Answered);
    }

    /// Request `i` says nothing about the endpoint.
    pub(super) fn set_aside(&mut self, i: usize) {
        self.note(i, Sign::Neither);
    }

    /// Request `i` came to nothing; how many in a row did, once they are too many.
    pub(super) fn failed(&mut self, i: usize) -> Option<usize> {
        self.arrived_in_a_row += 1;
        self.note(i, Sign::Failed);
        if self.in_a_row >= self.most {
            return Some(self.in_a_row);
        }
        // One request that hangs must not keep all after it from being counted.
        (self.arrived_in_a_row >= self.most + self.parallel).then_some(self.arrived_in_a_row)
    }

    fn note(&mut self, i: usize, sign: Sign) {
        self.ahead.insert(i, sign);
        while self.in_a_row < self.most
            && let Some(sign) = self.ahead.remove(&self.next)
        {
            self.next += 1;
            match sign {
                Sign::Answered => self.in_a_row = 0,
                Sign::Failed => self.in_a_row += 1,
                Sign::Neither => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_refusals_wait_for_slow_answers_that_were_begun_before() {
        let mut streak = Streak::new(3, 8);
        for refused in [1, 2, 4, 5, 6] {
            assert_eq!(streak.failed(refused), None, "0 and 3 are under way");
        }
        streak.answered(3);
        assert_eq!(streak.failed(7), None, "0 is under way");
        streak.answered(0);
        // 4 to 7 came to nothing in a row; the next one tells.
        assert_eq!(streak.failed(8), Some(3));
    }

    #[test]
    fn an_endpoint_that_answers_nobody_is_known_at_once() {
        let mut streak = Streak::new(3, 8);
        assert_eq!(streak.failed(0), None);
        assert_eq!(streak.failed(2), None);
        assert_eq!(streak.failed(1), Some(3));
    }

    #[test]
    fn a_request_that_hangs_hides_a_dead_endpoint_only_for_a_while() {
        let mut streak = Streak::new(3, 8);
        let known = (1..).find_map(|i| streak.failed(i));
        assert_eq!(known, Some(11));
    }

    #[test]
    fn a_row_of_failures_goes_on_from_one_call_to_the_next() {
        let mut streak = Streak::new(3, 8);
        assert_eq!(streak.failed(0), None);
        streak.set_aside(1);
        assert_eq!(streak.failed(2), None);
        streak.begin();
        assert_eq!(streak.failed(0), Some(3));
    }
}
