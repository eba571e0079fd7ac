"""The README's main command on an idle and on a busy machine, and the demo detector's accuracy by image size.

Usage: ``python -m tests.benchmarks.demo RUNS [sizes|idle|1|2]…`` makes what is missing in RUNS and prints tables in
Markdown: ``sizes`` is the accuracy of the dense detector at every size that the command may pick, the others are the
command next to so many busy processes (of ``stress-ng``, or loops of Python). What is finished is not repeated.
The figures are those of this machine: run it with nothing else on it. Without words everything, about a quarter hour.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoprune.demo import DEMO_SIZES, demo_weights

COMMAND = ("search", "--budget", "latency=8ms")
LOADS = {"idle": 0, "1": 1, "2": 2}


def main(words: Sequence[str]) -> None:
    """Make what is missing and print it."""
    folder, wanted = Path(words[0]), words[1:] or ["sizes", *LOADS]
    folder.mkdir(parents=True, exist_ok=True)
    if "sizes" in wanted:
        print("| image size | mAP50 | mAP50-95 |\n|---|---|---|")
        for size, (map50, map50_95) in sizes(folder).items():
            print(f"| {size} | {map50:.3f} | {map50_95:.3f} |")
    loads = [word for word in LOADS if word in wanted]
    if loads:
        print(f"\n`autoprune {' '.join(COMMAND)}`\n")
        print("| busy processes | exit | seconds | what came out |\n|---|---|---|---|")
    for word in loads:
        found = run(folder, word)
        print(f"| {LOADS[word]} | {found['exit']} | {found['seconds']:.0f} | {described(folder / word, found)} |")


def sizes(folder: Path) -> dict[int, Any]:
    """Return mAP50 and mAP50-95 of the dense detector by image size, measured where they are not known."""
    from autoprune.demo.train import accuracies

    kept = folder / "sizes.json"
    known = {int(size): found for size, found in json.loads(kept.read_text()).items()} if kept.exists() else {}
    for size in DEMO_SIZES:
        if size not in known:
            known |= accuracies(demo_weights(), [size], folder=folder / "val")
            kept.write_text(json.dumps(known))
    return {size: known[size] for size in DEMO_SIZES}


def run(folder: Path, word: str) -> dict[str, Any]:
    """Run the command next to busy processes, unless that was done; return its exit code, seconds and last words."""
    kept = folder / f"{word}.json"
    if not kept.exists():
        shutil.rmtree(folder / word, ignore_errors=True)
        with busy(LOADS[word]):
            start = time.perf_counter()
            command = [sys.executable, "-m", "autoprune", *COMMAND, "--out", str(folder / word)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
        (folder / f"{word}.log").write_text(done.stdout + done.stderr)
        lines = (done.stderr or done.stdout).strip().splitlines()
        kept.write_text(json.dumps({"exit": done.returncode, "seconds": seconds, "said": " ".join(lines[-3:])}))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many cores busy with other processes."""
    loop = ["stress-ng", "--cpu", "1"] if shutil.which("stress-ng") else [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(loop, stdout=subprocess.DEVNULL) for _ in range(processes)]
    try:
        time.sleep(2 if started else 0)
        yield
    finally:
        for process in started:
            process.terminate()
            process.wait()


def described(path: Path, found: dict[str, Any]) -> str:
    """Return the figures of a run in words, or its last line if there are none."""
    summary = path / "summary.json"
    if not summary.exists():
        return str(found["said"])
    result = json.loads(summary.read_text())
    dense, final = result["stages"]["dense"], list(result["stages"].values())[-1]
    latency = final["latencies"]["latency"]
    loaded = ", measured under load" if latency.get("under_load") else ""
    return (
        f"{result['title']}: {dense['latencies']['latency']['median']:.2f} → {latency['median']:.2f} ms"
        f"{loaded}, {latency['threads']} threads, mAP50-95 {dense['metrics']['mAP50-95']:.3f} → "
        f"{final['metrics']['mAP50-95']:.3f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
