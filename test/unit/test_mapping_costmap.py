"""The rolling grid: evidence, time, and a robot that moves."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_detector_ros.mapping.costmap import RollingGrid

SECOND = 1_000_000_000
NOTHING = np.zeros((0, 2))


def at(grid: RollingGrid, x: float, y: float) -> int:
    """Occupancy of the cell that holds a place."""
    left, bottom = grid.origin
    column = int(np.floor((x - left) / grid.resolution + 1e-9))
    row = int(np.floor((y - bottom) / grid.resolution + 1e-9))
    return int(grid.occupancy()[row, column])


def test_unknown_then_hit_then_free():
    grid = RollingGrid(10.0, 0.5, half_life=0.0)
    grid.update(0, (0.0, 0.0), NOTHING, NOTHING)
    assert grid.occupancy().shape == (20, 20)
    assert (grid.occupancy() == -1).all()
    place = np.array([[2.1, -1.3]])
    grid.update(1, (0.0, 0.0), place, NOTHING)
    assert at(grid, 2.1, -1.3) == 70  # log-odds 0.85
    assert (grid.occupancy() >= 0).sum() == 1
    grid.update(2, (0.0, 0.0), NOTHING, np.array([[3.3, 3.3]]))
    assert at(grid, 3.3, 3.3) == 40  # log-odds -0.4
    for stamp in range(3, 8):
        grid.update(stamp, (0.0, 0.0), NOTHING, place)
    assert 0 <= at(grid, 2.1, -1.3) < 30


def test_rows_are_y_and_columns_are_x():
    grid = RollingGrid(4.0, 1.0, half_life=0.0)
    grid.update(0, (0.5, 0.5), np.array([[1.5, -0.5]]), NOTHING)
    assert grid.origin == (-2.0, -2.0)
    assert np.argwhere(grid.occupancy() > 50).tolist() == [[1, 3]]


def test_one_frame_counts_once_and_an_anomaly_goes_before_ground():
    grid = RollingGrid(10.0, 0.5, half_life=0.0)
    many = np.full((500, 2), 1.1)
    grid.update(0, (0.0, 0.0), many, many)
    assert at(grid, 1.1, 1.1) == 70


def test_certainty_is_bounded_so_that_a_cell_can_change():
    grid = RollingGrid(10.0, 0.5, half_life=0.0)
    place = np.array([[1.0, 1.0]])
    for stamp in range(100):
        grid.update(stamp, (0.0, 0.0), place, NOTHING)
    assert at(grid, 1.0, 1.0) == 97
    for stamp in range(100, 200):
        grid.update(stamp, (0.0, 0.0), NOTHING, place)
    assert at(grid, 1.0, 1.0) == 12
    frames = 0
    while at(grid, 1.0, 1.0) < 65:
        frames += 1
        grid.update(200 + frames, (0.0, 0.0), place, NOTHING)
    assert frames <= 4


def test_evidence_halves_with_time_whatever_the_frame_rate():
    place = np.array([[1.0, 1.0]])
    values = []
    for frames in (1, 10):
        grid = RollingGrid(10.0, 0.5, half_life=4.0)
        grid.update(0, (0.0, 0.0), place, NOTHING)
        for frame in range(1, frames + 1):
            grid.update(frame * 4 * SECOND // frames, (0.0, 0.0), NOTHING, NOTHING)
        values.append(at(grid, 1.0, 1.0))
    assert values == [60, 60]  # log-odds 0.425
    grid.update(60 * SECOND, (0.0, 0.0), NOTHING, NOTHING)
    assert at(grid, 1.0, 1.0) == -1


def test_the_robot_moves_and_what_it_saw_stays_in_place():
    grid = RollingGrid(20.0, 0.1, half_life=0.0)
    places = np.array([[3.05, 0.05], [2.05, 2.05], [-1.95, -3.05]])
    grid.update(0, (0.0, 0.0), places, NOTHING)
    rng = np.random.default_rng(0)
    position = np.zeros(2)
    for stamp in range(1, 200):
        position = np.clip(position + rng.uniform(-0.23, 0.23, 2), -4, 4)
        grid.update(stamp, tuple(position), NOTHING, NOTHING)
        # Not one cell more, and each at its place: nothing smears.
        assert (grid.occupancy() > 0).sum() == 3
        assert [at(grid, *place) for place in places] == [70, 70, 70]
        left, bottom = grid.origin
        assert np.abs(np.array([left, bottom]) + 10.0 - position).max() <= 0.1 + 1e-9


def test_what_the_window_leaves_is_forgotten():
    grid = RollingGrid(10.0, 0.5, half_life=0.0)
    grid.update(0, (0.0, 0.0), np.array([[-4.0, 0.0]]), NOTHING)
    grid.update(1, (3.0, 0.0), NOTHING, NOTHING)
    assert (grid.occupancy() == -1).all()
    grid.update(2, (0.0, 0.0), NOTHING, NOTHING)
    assert (grid.occupancy() == -1).all()
    grid.update(3, (0.0, 0.0), np.array([[1.0, 1.0], [50.0, 0.0], [np.nan, 0.0]]), NOTHING)
    assert (grid.occupancy() >= 0).sum() == 1
    grid.update(4, (1000.0, -1000.0), NOTHING, NOTHING)
    assert (grid.occupancy() == -1).all()


@pytest.mark.parametrize("origin", [0.0, 4_000_000.0])
def test_a_turning_robot_sees_a_thing_in_one_place(origin: float):
    """The thing is seen in the robot's frame and carried to the fixed one, as the node does."""
    grid = RollingGrid(20.0, 0.2, half_life=0.0)
    thing = np.array([origin + 3.1, 2.1])
    for step in range(40):
        heading, robot = 0.05 * step, np.array([origin + 0.05 * step, 0.02 * step])
        turn = np.array([[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]])
        seen = (thing - robot) @ turn  # fixed to robot
        grid.update(step, tuple(robot), (seen @ turn.T + robot)[None], NOTHING)
    assert at(grid, *thing) == 97
    assert (grid.occupancy() >= 0).sum() == 1


def test_a_clock_that_jumps_back_starts_anew():
    grid = RollingGrid(10.0, 0.5, half_life=5.0)
    grid.update(100 * SECOND, (40.0, 0.0), np.array([[41.0, 0.0]]), NOTHING)
    grid.update(3 * SECOND, (0.0, 0.0), np.array([[1.0, 0.0]]), NOTHING)  # the bag starts again
    assert (grid.occupancy() >= 0).sum() == 1
    assert at(grid, 1.0, 0.0) == 70
    grid.update(4 * SECOND, (0.0, 0.0), NOTHING, NOTHING)
    assert at(grid, 1.0, 0.0) < 70  # time goes on from there


def test_a_late_camera_adds_by_its_age_without_moving_time_or_window():
    grid = RollingGrid(10.0, 0.5, half_life=2.0)
    now = 10 * SECOND
    grid.update(now, (2.0, 0.0), np.array([[3.0, 0.0]]), NOTHING)
    origin = grid.origin
    grid.update(now, (0.0, 0.0), np.array([[1.0, 1.0]]), NOTHING, seen_at=8 * SECOND)
    assert grid.origin == origin
    assert (at(grid, 3.0, 0.0), at(grid, 1.0, 1.0)) == (70, 60)
    grid.update(now, (0.0, 0.0), np.array([[-1.0, 1.0]]), NOTHING, seen_at=7 * SECOND)
    assert at(grid, -1.0, 1.0) == -1  # of no weight any more
    grid.update(12 * SECOND, (2.0, 0.0), NOTHING, NOTHING)
    assert (at(grid, 3.0, 0.0), at(grid, 1.0, 1.0)) == (60, -1)


def test_what_is_not_seen_any_more_is_unknown_again():
    grid = RollingGrid(10.0, 0.5, half_life=5.0)
    seen, left = np.array([[1.0, 1.0]]), np.array([[-2.0, 1.0], [-2.0, 2.0]])
    for second in range(10):  # as certain as can be
        grid.update(second * SECOND, (0.0, 0.0), np.concatenate([seen, left[:1]]), left[1:])
    for second in range(10, 15):
        grid.update(second * SECOND, (0.0, 0.0), seen, NOTHING)
        # Fading, but neither gone nor free.
        assert at(grid, *left[0]) > 50
        assert 0 <= at(grid, *left[1]) < 50
    grid.age(15 * SECOND)  # nothing was seen
    assert (at(grid, *left[0]), at(grid, *left[1])) == (-1, -1)
    assert at(grid, *seen[0]) > 90
    grid.age(20 * SECOND)
    assert (grid.occupancy() == -1).all()


def test_kept_evidence_is_kept():
    grid = RollingGrid(10.0, 0.5, half_life=0.0)
    grid.update(0, (0.0, 0.0), np.array([[1.0, 1.0]]), NOTHING)
    grid.age(3600 * SECOND)
    assert at(grid, 1.0, 1.0) == 70
