//! Ctrl-C and the signals of schedulers ask a run to save and stop; loops look at [`requested`].

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::flag;

/// Exit status of a program ended by Ctrl-C: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on SIGINT, SIGTERM and SIGUSR1 only set the flag; a second SIGINT ends the program at once
/// with status 130. A file beyond `ulimit -f` is an error of its writing, not the program's end. Called once,
/// by a program's `main`.
pub fn install() {
    const ALLOWED: &str = "a program may handle SIGINT, SIGTERM and SIGUSR1";
    let pressed = Arc::new(AtomicBool::new(false));
    // Handlers run in this order: the first SIGINT finds `pressed` unset and passes.
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&pressed)).expect(ALLOWED);
    flag::register(SIGINT, pressed).expect(ALLOWED);
    for signal in [SIGINT, SIGTERM, SIGUSR1] {
        flag::register(signal, Arc::clone(&REQUESTED)).expect(ALLOWED);
    }
    flag::register(SIGXFSZ, Arc::default()).expect("a program may handle SIGXFSZ");
}

/// Whether the run was asked to save and stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    /// The child of the tests below; does nothing in an ordinary test run.
    #[test]
    fn child_that_waits() {
        let Some(folder) = std::env::var_os("SYSGEN_TEST_INTERRUPT") else {
            return;
        };
        let folder = std::path::Path::new(&folder);
        install();
        std::fs::write(folder.join("ready"), "").unwrap();
        while !requested() {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::fs::write(folder.join("stopping"), "").unwrap();
        if std::env::var_os("SYSGEN_TEST_SLOW").is_some() {
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    fn wait_for(path: &std::path::Path, child: &mut Child) {
        while !path.exists() {
            assert!(child.try_wait().unwrap().is_none(), "the child ended early");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends the signals one after another; the child's exit status.
    fn exit_after(signals: &[i32]) -> Option<i32> {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "interrupt::tests::child_that_waits"]);
        command
            .env("SYSGEN_TEST_INTERRUPT", folder.path())
            .stdout(Stdio::null());
        if signals.len() > 1 {
            command.env("SYSGEN_TEST_SLOW", "1");
        }
        let mut child = command.spawn().unwrap();
        wait_for(&folder.path().join("ready"), &mut child);
        for (i, signal) in signals.iter().enumerate() {
            if i > 0 {
                wait_for(&folder.path().join("stopping"), &mut child);
            }
            let process = child.id().to_string();
            Command::new("kill")
                .args([&format!("-{signal}"), &process])
                .status()
                .unwrap();
        }
        child.wait().unwrap().code()
    }

    #[test]
    fn one_signal_lets_the_program_end_by_itself() {
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            assert_eq!(exit_after(&[signal]), Some(0), "signal {signal}");
        }
    }

    #[test]
    fn a_second_ctrl_c_ends_the_program_at_once() {
        assert_eq!(exit_after(&[SIGINT, SIGINT]), Some(130));
    }
}
