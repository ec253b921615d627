"""Addresses in place of paths, in every source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilavt_components.sources.image import ImageConfig, ImageSource
from vilavt_components.sources.point_cloud.source import PointCloudSource, PointCloudSourceConfig
from vilavt_components.sources.video.source import VideoConfig, VideoSource
from vilavt_toolkit.data.shards import expand_braces
from vilavt_toolkit.errors import InputError

SOURCES = [
    (ImageSource, ImageConfig()),
    (VideoSource, VideoConfig()),
    (PointCloudSource, PointCloudSourceConfig(features=[])),
]


@pytest.mark.parametrize("address", ["https://a.example/b//c.png", "s3://bucket/c.ply", "HTTP://a.example"])
def test_a_web_address_is_called_one_and_keeps_its_slashes(address: str) -> None:
    # A `Path` has lost one slash of those that stand together.
    for source, config in SOURCES:
        for given, told in ((address, address), (Path(address), address.replace("b//c", "b/c"))):
            with pytest.raises(InputError) as error:
                source.open(given, config)
            assert str(error.value).startswith(f"{told} is a web address. Download it")
    with pytest.raises(InputError, match="is a web address"):
        expand_braces(address)


def test_a_long_address_is_not_printed_whole() -> None:
    for source, config in SOURCES:
        with pytest.raises(InputError) as error:
            source.open("https://a.example/" + "x" * 5000, config)
        assert len(str(error.value)) < 300


def test_the_address_of_a_file_is_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    np.savetxt(folder / "a.xyz", np.eye(3))
    for (source, config), name in zip(SOURCES, ("a.png", "a.png", "a.xyz"), strict=True):
        for start in ("file://", "file://localhost", "FILE://"):
            assert source.open(f"{start}{str(folder).replace(' ', '%20')}/{name}", config).name == str(folder / name)
