"""Broken files of every modality, opened as `vilavt ask` opens them: each can be used, or is refused in a sentence.

python benchmarks/attack/files.py                                        # 1,500 of each modality
python benchmarks/attack/files.py --only images --first 17 --count 1     # one case again
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

from _broken_files import MODALITIES, break_file
from _campaign import Campaign, write_reports

from vilavt_toolkit.contracts import Region, Source
from vilavt_toolkit.data.fields import BadRow
from vilavt_toolkit.data.originals import Inspector
from vilavt_toolkit.errors import VilavtError
from vilavt_toolkit.registry import sources
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.vision.boxes import BoxError


def look_at(path: Path, kind: str) -> str:
    """Open a file, cut out all first views and a zoom, draw it; returns what came out."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        outcome = _look_at(path, kind)
    assert not told, f"a raw warning: {told[0].message} ({told[0].filename}:{told[0].lineno})"
    return outcome


def _look_at(path: Path, kind: str) -> str:
    entry = sources.get(kind)
    if kind == "image":
        check_header(path)
    try:
        source: Source = entry.cls.open(str(path), entry.config())
        for number, box in enumerate(source.overviews()):
            Region(source, overview=number).crop()
            source.label(box)
        # What a model does next: it names a box, and the source reads it.
        whole = source.extent
        half = source.write_box(whole, whole, 1000)
        half[source.box_key] = [number // 2 for number in half[source.box_key]]
        try:
            source.crop(source.read_box(half, whole, 1000))
        except BoxError:
            return "right, without a zoom"
        source.draw([whole], 64)
    except VilavtError as error:
        check_sentence(str(error), path)
        return "refused"
    return "right"


def check_header(path: Path) -> None:
    """Look at an image as `vilavt data check --open` does."""
    try:
        Inspector(decode=True).inspect(str(path), video=False)
    except BadRow as problem:
        check_sentence(str(problem), path)


def check_sentence(text: str, path: Path) -> None:
    """Raise AssertionError if an error is more than a sentence or two, or does not name the file."""
    assert path.name in text, f"the file is not named: {text!r}"
    assert "\n" not in text and len(text) < 500 + len(str(path)), f"no sentence: {text!r}"


def attack(name: str, options: argparse.Namespace, folder: Path) -> Campaign:
    """Break files of a modality, and look at each."""
    kind, collect = MODALITIES[name]
    campaign, samples = Campaign(name), collect()
    for number in range(options.first, options.first + options.count if samples else 0):
        # A generator of its own for each case, so that one can be run again alone.
        chance = random.Random(f"{options.seed} {name} {number}")
        suffix, data = chance.choice(samples)
        path = folder / f"case{suffix}"
        path.write_bytes(break_file(data, chance))
        before = len(campaign.findings)
        case = f"{name}, seed {options.seed}, case {number}, {suffix}"
        campaign.run_case(case, partial(look_at, path, kind))
        if options.keep is not None and len(campaign.findings) > before:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{name.replace(' ', '-')}-{number}{suffix}").write_bytes(path.read_bytes())
    return campaign


def main() -> int:
    """Run the campaign of each modality; returns 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1500, help="files of each modality (default 1500)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to run one again")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases")
    parser.add_argument("--only", nargs="+", choices=MODALITIES, default=list(MODALITIES), help="modalities")
    parser.add_argument("--keep", type=Path, help="folder for the files that were found wanting")
    parser.add_argument("--json", type=Path, help="write the outcomes into this file")
    options = parser.parse_args()
    # Files that end early are warned of, thousands of them here.
    logging.disable(logging.WARNING)
    load_builtin()
    found = 0
    campaigns = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            campaign = attack(name, options, Path(folder))
            found += campaign.report(None)
            campaigns.append(campaign)
    if options.json is not None:
        write_reports(options.json, campaigns)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
