"""Distillation across vocabularies: TRL's ULDLoss (trl.experimental.gold) with spans merged by the chain rule, in float64.
output: golden/kd/spans.{json,safetensors}
usage: gen_kd_spans.py
The token strategy is "bayesian": position k predicts token k, and a span's distribution is that of its last token times the
probabilities of the tokens before it. TRL's default, "observed", takes the distribution of the first token instead
(its pull request 5905 says what is wrong with that).
"""
import types

import numpy as np
from trl.experimental.gold.gold_trainer import ULDLoss

from common import *

GOLDEN = ROOT
STUDENT_VOCAB, TEACHER_VOCAB = 41, 57
# Where the tokens of one text end, for the student and the teacher.
TEXTS = [
    ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),                       # the same cuts
    ([3, 5, 9, 10, 14], [3, 4, 5, 10, 11, 12, 14]),           # one to many, many to one
    ([2, 4, 6, 8, 12, 15], [3, 6, 7, 9, 12, 13, 15]),         # cuts that cross
    ([2, 4, 6, 8, 10, 11], [3, 5, 7, 9, 11]),                 # one span
    ([1, 1, 2, 7], [1, 4, 4, 7]),                             # tokens that write nothing
]


def loss_of(temperature):
    config = types.SimpleNamespace(
        uld_crossentropy_weight=0.0, uld_distillation_weight=1.0, uld_student_temperature=temperature,
        uld_teacher_temperature=temperature, uld_skip_student_eos=False, uld_skip_teacher_eos=False,
        use_extended_uld=True, uld_token_merge_strategy="bayesian")
    return ULDLoss(config)


def by_hand(student, teacher, ids, groups, temperature):
    """The sum of the spans' distances, straight from the definition, in numpy."""
    def softmax(logits):
        e = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
        return e / e.sum(-1, keepdims=True)
    total = 0.0
    for pair in zip(*groups):
        merged = []
        for logits, tokens, span in zip((student, teacher), ids, pair):
            probabilities = softmax(logits)
            before = np.prod([probabilities[k, tokens[k]] for k in span[:-1]])
            merged.append(np.sort(before * probabilities[span[-1]])[::-1])
        width = max(map(len, merged))
        q, p = (np.pad(side, (0, width - len(side))) for side in merged)
        total += np.abs(q - p).sum()
    return total


def main():
    g = gen(5905)
    S, texts = {}, []
    for number, ends in enumerate(TEXTS):
        offsets = [[(0 if k == 0 else side[k - 1], end) for k, end in enumerate(side)] for side in ends]
        groups = ULDLoss._align_by_byte_offsets(*offsets)
        sizes = [len(side) for side in ends]
        logits = [torch.randn(1, n + 1, vocab, generator=g, dtype=torch.float64) * 2
                  for n, vocab in zip(sizes, (STUDENT_VOCAB, TEACHER_VOCAB))]
        # A prompt of one token, then the answer. Likely tokens, so that the products are not all nothing.
        ids = []
        for side in logits:
            best = side[0, :-1].topk(3, dim=-1).indices
            pick = torch.randint(0, 3, (best.shape[0],), generator=g)
            ids.append(torch.cat([torch.zeros(1, dtype=torch.long), best.gather(1, pick[:, None])[:, 0]])[None])
        labels = [torch.where(torch.arange(x.shape[1]) == 0, IGNORE, x) for x in ids]
        row = dict(student_ends=ends[0], teacher_ends=ends[1], student_spans=groups[0], teacher_spans=groups[1],
                   student_ids=ids[0][0, 1:].tolist(), teacher_ids=ids[1][0, 1:].tolist(), losses=[])
        S[f"{number}.student_logits"], S[f"{number}.teacher_logits"] = (x[0, :-1].float() for x in logits)
        # The stored logits are the input: rounded to f32 first.
        logits = [x.float().double() for x in logits]
        for temperature in (1.0, 2.0):
            student = logits[0].clone().requires_grad_()
            with_prompt = [torch.tensor([[(0, 0)] + side]) for side in offsets]
            mean = loss_of(temperature)(student, logits[1], *labels, *ids, *with_prompt)
            mean.backward()
            count = len(groups[0])
            expected = by_hand(student.detach().numpy()[0, :-1], logits[1].numpy()[0, :-1],
                               (row["student_ids"], row["teacher_ids"]), groups, temperature)
            assert abs(mean.item() * count - expected) < 1e-12, (number, temperature)
            row["losses"].append(dict(temperature=temperature, sum=mean.item() * count))
            assert student.grad[0, -1].abs().max() == 0
            S[f"{number}.T{temperature:g}.grad_student_logits"] = (student.grad[0, :-1] * count).float()
        texts.append(row)
    save_tensors(GOLDEN / "kd" / "spans.safetensors", S)
    write_json(GOLDEN / "kd" / "spans.json", dict(
        versions=versions(),
        definition="a span's distribution: softmax(logits / T) of its last position times the probabilities of its earlier tokens; "
                   "distance: sum over ranks of |student - teacher|, both sorted, the shorter one filled up with 0; sum: over the spans. "
                   "TRL divides by the number of spans, which is taken back here.",
        alignment="logits[k] predicts ids[k]; spans are lists of positions; ends are byte offsets in the text.",
        texts=texts))


if __name__ == "__main__":
    main()
