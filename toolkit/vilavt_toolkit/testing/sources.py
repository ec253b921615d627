"""The claims that every registered source must meet."""

from __future__ import annotations

from vilavt_toolkit.contracts import Box, Region, Source
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.registry import sources
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance
from vilavt_toolkit.vision.boxes import BoxError

_UNITS = 1000
_for_every_instance = bench.for_every_instance(sources)


def _open_example(instance: Instance[Source]) -> Source:
    cls = instance.entry.cls
    original = cls.example()
    if original is None:
        original = bench.example_original(cls.modality)
    assert original is not None, f"there is no example of modality '{cls.modality}'"
    return cls.open(original, instance.config)


def _middle_half(extent: Box) -> Box:
    """Return the middle half of a box, along every axis."""
    return bench.part_of(extent, 0.25, 0.75)


@_for_every_instance
def reads_the_boxes_it_writes(instance: Instance[Source]) -> None:
    """`read_box` reads what `write_box` wrote, for the whole source and for a region within a region."""
    source = _open_example(instance)
    whole = source.extent
    value = source.write_box(whole, whole, _UNITS)
    assert source.read_box(value, whole, _UNITS) == whole, f"{value} is not read as the whole source"
    # Read back, the middle half lies on whole units, so that the boxes below can be compared with ==.
    half = source.read_box(source.write_box(_middle_half(whole), whole, _UNITS), whole, _UNITS)
    inner = source.read_box(source.write_box(whole, whole, _UNITS), half, _UNITS)
    assert inner == half, f"the whole of the region {half} is read as {inner}"


@_for_every_instance
def explains_unreadable_boxes(instance: Instance[Source]) -> None:
    """A value that is no box raises BoxError with a reason."""
    source = _open_example(instance)
    # Wrong types, no order, NaN: what language models write into a tool call.
    for value in (None, [], "all", [4, 3, 2, 1], {"x": 1}, [float("nan")] * 4):
        try:
            box = source.read_box({source.box_key: value}, source.extent, _UNITS)
        except BoxError as error:
            assert str(error), f"no reason is given for the box {value!r}"
        else:
            raise AssertionError(f"{value!r} is read as the box {box}")


@_for_every_instance
def crops_and_draws(instance: Instance[Source]) -> None:
    """Crops have their modality and are marked as overview or zoom; drawings have the requested size."""
    source = _open_example(instance)
    crop = source.crop(_middle_half(source.extent))
    assert (crop.modality, crop.overview) == (source.modality, False), "a zoom is not marked as one"
    assert source.crop(source.extent, overview=True).overview, "the overview is not marked as one"
    picture = source.draw([source.extent, _middle_half(source.extent)], 200)
    assert max(picture.size) == 200, f"the longer side of a drawing of 200 is {max(picture.size)}"


@_for_every_instance
def declares_its_overviews(instance: Instance[Source]) -> None:
    """It has overviews, the same each time; each is marked as one and can be zoomed into; a label is one line."""
    source = _open_example(instance)
    boxes = list(source.overviews())
    assert boxes and boxes == list(source.overviews()), f"the overviews are {boxes}, then {source.overviews()}"
    assert source.extent in boxes, f"the extent {source.extent} is no overview"
    for number, box in enumerate(boxes):
        assert Region(source, overview=number).crop().overview, f"overview {number} is not marked as one"
        found = source.read_box(source.write_box(box, box, _UNITS), box, _UNITS)
        assert found == box, f"the whole of overview {number}, {box}, is read as {found}"
        assert "\n" not in source.label(box), f"the label of overview {number} has several lines"


@_for_every_instance
def refuses_a_missing_file(instance: Instance[Source]) -> None:
    """A missing file raises an InputError that names it."""
    cls = instance.entry.cls
    try:
        cls.open("no-such-file.bin", instance.config)
    except InputError as error:
        assert "no-such-file.bin" in str(error), f"{str(error)!r} does not name the file"
    else:
        raise AssertionError("a file that does not exist is opened")


CLAIMS = (
    reads_the_boxes_it_writes,
    explains_unreadable_boxes,
    crops_and_draws,
    declares_its_overviews,
    refuses_a_missing_file,
)
