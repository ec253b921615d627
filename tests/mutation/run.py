"""Mutation testing: change the arithmetic one place at a time, and see that a test fails each time.

    make mutants                                    # everything below, an hour on two cores
    python tests/mutation/run.py statistics costs   # some of it

mutmut makes the mutants and runs, for each, the tests that call the mutated function. It needs packages below `src/`,
so it works on a copy of the checkout. `survivors.md` lists, as regular expressions with their reason, the mutants that
change nothing a test on a CPU could see. Of the others, tests must kill at least nine in ten of every group.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTED = ROOT / "tests" / "mutation" / "survivors.md"
TOOLKIT, COMPONENTS = "src/vilavt_toolkit", "src/vilavt_components"
LEAST = 0.9
"""Share of a group's mutants, those of `survivors.md` aside, that tests must kill."""
COPIED = ("recipes", "docs", "benchmarks", "README.md", "CONTRIBUTING.md", "Makefile", "constraints.txt")


@dataclass(frozen=True)
class Group:
    """Files that are mutated together, and the tests that must notice."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = {
    "statistics": Group((f"{TOOLKIT}/evaluation/statistics.py",), ("tests/toolkit/evaluation/test_statistics.py",)),
    "costs": Group((f"{TOOLKIT}/generation/flops.py",), ("tests/toolkit/generation/test_flops.py",)),
    "losses": Group(
        (
            f"{TOOLKIT}/training/losses.py",
            f"{TOOLKIT}/training/schedule.py",
            f"{TOOLKIT}/training/reinforcement/policy_math.py",
            f"{COMPONENTS}/policy_losses/*.py",
        ),
        (
            "tests/toolkit/training/test_losses.py",
            "tests/toolkit/training/test_schedule.py",
            "tests/toolkit/training/reinforcement/test_policy_math.py",
            "tests/components/policy_losses",
            "tests/components/test_golden_policy.py",
        ),
    ),
    "advantages": Group((f"{COMPONENTS}/advantages/*.py",), ("tests/components/advantages",)),
    "rewards": Group(
        tuple(
            f"{COMPONENTS}/{files}.py"
            for files in ("rewards/*", "common/answers/reading", "common/answers/boxes", "common/answers/scoring")
        ),
        ("tests/components/rewards", "tests/components/common/answers", "tests/components/test_golden_rewards.py"),
    ),
    "positions": Group((f"{TOOLKIT}/vision/positions.py",), ("tests/toolkit/vision/test_positions.py",)),
    "packing": Group(
        (f"{TOOLKIT}/packed/tokens.py",),
        ("tests/toolkit/packed", "tests/toolkit/vision/test_dynamic_encoder.py"),
    ),
}

# A mutant that takes too long counts as killed, and on a busy machine every test takes many times as long.
SETTINGS = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = {files}
also_copy = {copied}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider"]
timeout_multiplier = 60
"""


def copy_checkout(folder: Path) -> None:
    """Copy what the tests need, the packages below `src/`, where mutmut finds their names."""
    ignore = shutil.ignore_patterns("__pycache__", "runs", ".*")
    for name in (*COPIED, "tests", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    for package in ("toolkit/vilavt_toolkit", "components/vilavt_components"):
        shutil.copytree(ROOT / package, folder / "src" / Path(package).name, ignore=ignore)
        # Tests name source files by their place in the checkout.
        (folder / package).parent.mkdir()
        (folder / package).symlink_to(folder / "src" / Path(package).name)


def run_mutmut(folder: Path, group: Group, children: int) -> dict[str, str]:
    """Mutate a group's files and return the outcome of every mutant by name, such as `killed`."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settings = settings.replace('pythonpath = ["toolkit", "components"]', 'pythonpath = ["src"]')
    files, tests = list(group.files), [test for test in group.tests if (ROOT / test).exists()]
    settings += SETTINGS.format(files=files, copied=[*COPIED, "toolkit", "components"], tests=tests).replace("'", '"')
    (folder / "pyproject.toml").write_text(settings, encoding="utf-8")
    shutil.rmtree(folder / "mutants", ignore_errors=True)
    command = [sys.executable, "-m", "mutmut"]
    done = subprocess.run(
        [*command, "run", "--max-children", str(children)], cwd=folder, capture_output=True, text=True
    )
    shown = subprocess.run([*command, "results", "--all", "true"], cwd=folder, capture_output=True, text=True)
    outcomes = dict(re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$", shown.stdout, re.MULTILINE))
    if not outcomes:
        sys.exit(f"mutmut made no mutants:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return outcomes


def read_change(folder: Path, name: str) -> str:
    """Return what a mutant changes: its function, then its removed and added lines."""
    shown = subprocess.run(
        [sys.executable, "-m", "mutmut", "show", name], cwd=folder, capture_output=True, text=True
    ).stdout
    lines = [line for line in shown.splitlines() if re.match(r"[-+](?![-+])", line)]
    function = re.sub(
        r"x_?ǁ(\w+)ǁ|x_", lambda found: f"{found[1]}." if found[1] else "", name.rpartition("__mutmut_")[0]
    )
    return f"{function}: {' '.join(' '.join(line.split()) for line in lines)}"


def read_excuses() -> list[re.Pattern[str]]:
    """Return the patterns in the first column of the table of `survivors.md`."""
    rows = re.findall(r"^\| `(.+?)` \|", LISTED.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.compile(row.replace(r"\|", "|")) for row in rows]


def main() -> int:
    """Run the groups that are named, or all; 1 where one falls short."""
    parser = argparse.ArgumentParser(description="Mutation testing of the arithmetic that numbers rest on.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(GROUPS)}; none: all")
    parser.add_argument("--children", type=int, default=2, help="mutants tested at once")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.groups if name not in GROUPS]:
        parser.error(f"unknown group {unknown[0]!r}; choose from {', '.join(GROUPS)}")
    excuses, short = read_excuses(), False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_checkout(folder)
        for name in arguments.groups or GROUPS:
            outcomes = run_mutmut(folder, GROUPS[name], arguments.children)
            alive = [mutant for mutant, outcome in outcomes.items() if outcome in ("survived", "no tests")]
            changes = [read_change(folder, mutant) for mutant in alive]
            # A pattern may stand for mutants that a test happens to kill, so only survivors are excused.
            left = [change for change in changes if not any(excuse.search(change) for excuse in excuses)]
            excused = len(changes) - len(left)
            killed, judged = len(outcomes) - len(alive), len(outcomes) - excused
            short |= killed < LEAST * judged
            print(
                f"{name}: {len(outcomes)} mutants, {killed} killed, {excused} listed, {len(left)} survived: "
                f"{100 * killed / judged:.1f}% of those not listed ({100 * killed / len(outcomes):.1f}% of all)",
                flush=True,
            )
            for change in left:
                print(f"  {change}", flush=True)
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
