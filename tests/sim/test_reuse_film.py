"""Pictures of what was reused."""

from __future__ import annotations

import av
import numpy as np

from sim.reuse_film import DIM, ReuseFilm, dimmed


def test_reused_patches_are_dark_and_others_as_they_were() -> None:
    frame = np.full((24, 24, 3), 200, np.uint8)
    chosen = np.array([1, 6, 7])  # patch 1 of the first camera, 2 and 3 of the second
    first, second = (dimmed(frame, chosen, camera, 12) for camera in (0, 1))
    assert (first[:12, 12:] == 200).all()
    assert (first[:12, :12] == int(200 * DIM)).all()
    assert (first[12:] == int(200 * DIM)).all()
    assert (second[12:] == 200).all()
    assert (second[:12] == int(200 * DIM)).all()


def test_a_film_has_a_picture_for_each_observation(tmp_path) -> None:
    film, frame = ReuseFilm(12), np.full((96, 96, 3), 200, np.uint8)
    for number in range(4):
        film.add([frame, frame], np.arange(number), f"observation {number}")
    film.write(tmp_path / "film.mp4", 6)
    film.strip(tmp_path / "film.png", 2)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4
    assert (tmp_path / "film.png").stat().st_size > 100
