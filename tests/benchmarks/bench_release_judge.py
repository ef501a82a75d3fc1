"""How often the judge of releases calls a good release worse, over simulated releases; and how soon it finds bad ones.

``python tests/benchmarks/bench_release_judge.py [RELEASES]``; 10,000 of them by default, in all weathers: cold caches,
noisy routes, outages of both releases, few requests. To reach: 0.1 % refused at the most.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import sys
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from flask_stability.server.release import Verdict  # noqa: E402
from support_release import Release, Weather, good, judged, weather  # noqa: E402

BAD = {"fails every request": Release(fails=frozenset()), "fails one route of twenty": Release(fails=frozenset({7})),
       "is five times slower": Release(slower=5.0, processor=0.01), "leaks 2 MiB a request": Release(leak=2 << 20)}


def _good(seed: int) -> tuple[int, str, str]:
    draw = random.Random(seed)
    found, _, _ = judged(draw, weather(draw), good(draw))
    return seed, found.verdict.value, found.text


def _bad(case: tuple[str, int]) -> tuple[str, float, int, str]:
    name, seed = case
    routes = [(1.0, 0.002, 0.01, 0.3)] * 20
    found, seconds, failed = judged(random.Random(seed), Weather(120, 4, routes), BAD[name])
    return found.verdict.value, seconds, failed, found.text


def main() -> None:
    """Run both."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    verdicts: Counter[str] = Counter()
    with multiprocessing.Pool(2) as pool:
        for seed, verdict, text in pool.imap_unordered(_good, range(number), 50):
            verdicts[verdict] += 1
            if verdict == Verdict.WORSE.value:
                print(f"  seed {seed}: {text}", flush=True)
        print(f"{number} good releases: {dict(verdicts)}; refused: {verdicts[Verdict.WORSE.value] / number:.3%}")
        for name in BAD:
            found = pool.map(_bad, [(name, seed) for seed in range(50)])
            refused, times = [one for one in found if one[0] == Verdict.WORSE.value], [one[1] for one in found]
            print(f"{name}: refused {len(refused)} of {len(found)}; median {statistics.median(times):.1f} s, slowest "
                  f"{max(times):.1f} s, at most {max(one[2] for one in found)} failed; such as: {refused[0][3]}")


if __name__ == "__main__":
    main()
