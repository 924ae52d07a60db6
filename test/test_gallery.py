"""The page of inspect shows what the bag holds, and needs nothing else."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from support import bags
from support.bags import START_NS, Record
from support.pages import pictures, without_pictures
from training.__main__ import main
from training.ingest.gallery import birds_eye

MS = 1_000_000


def records(count: int = 20) -> list[Record]:
    found: list[Record] = []
    for i in range(count):
        stamp = START_NS + i * 100 * MS
        found.append(("/points", stamp, bags.cloud(stamp, np.array([[10.0, 0, i], [0, 20, 0]], dtype=np.float32))))
        found.append(("/camera", stamp + MS, bags.image(stamp, np.full((24, 32, 3), 10 * i, dtype=np.uint8))))
    return found


def pictures_of(page: str) -> list[np.ndarray]:
    return [cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) for _, content in pictures(page)]


def test_the_page_has_frames_scans_and_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive = records()
    drive[16][2].fields[2].name = "<height>"  # the scan of frame 8
    drive[-1][2].encoding = "thermal7"
    bag = bags.write_bag(tmp_path / "a<b", drive)
    assert main(["inspect", str(bag), "--html", str(tmp_path / "out.html")]) == 0
    printed = capsys.readouterr().out
    page = (tmp_path / "out.html").read_text()
    HTMLParser().feed(page)
    assert "a<b" not in page
    assert "<height>" not in page
    assert "&lt;height&gt;" in page
    assert "unknown encoding" in page
    for line in printed.splitlines():
        if line.startswith("  /"):
            assert line in page
    assert "http" not in without_pictures(page)  # nothing is fetched
    shown = [p for p in pictures_of(page) if p.shape == (24, 32, 3)]
    assert [round(float(p.mean()) / 10) for p in shown] == [0, 4, 8, 11, 15]
    assert len(pictures_of(page)) - len(shown) == 5


def test_the_view_from_above_has_x_up_and_y_left() -> None:
    view = birds_eye(np.array([[20.0, 0, 1], [0, 30.0, 2], [100, 0, 0]], dtype=np.float32), 80, 40.0)
    lit = {tuple(place) for place in np.argwhere(view.max(axis=2) > 60).tolist()}
    assert lit == {(20, 40), (40, 10)}
    assert view[40, 10].max() > view[20, 40].max()
    assert birds_eye(np.empty((0, 3), dtype=np.float32)).max() == 16


def test_a_page_is_of_one_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = bags.write_bag(tmp_path / "drive", [("/odom", START_NS, bags.odometry(START_NS, 0, 0, 0))])
    assert main(["inspect", str(bag), str(bag), "--html", str(tmp_path / "out.html")]) == 1
    assert "--html is given for 2 bags" in capsys.readouterr().err
    assert main(["inspect", str(bag), "--html", str(tmp_path / "no" / "out.html")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert main(["inspect", str(bag), "--html", str(tmp_path / "out.html")]) == 0
    assert "<img" not in (tmp_path / "out.html").read_text()
