"""Pooling is numpy's arithmetic, whatever the length and place of the frames; scaling leaves absent rows alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hba_ray.descriptors.pooling import ZScoreStatistics, l2, mean_std, normalise, pad_points, pooled, quartiles

finite = st.floats(-1e6, 1e6, width=32)
frames = st.tuples(st.integers(1, 600), st.integers(1, 5)).flatmap(lambda shape: arrays(np.float32, shape, elements=finite, fill=finite))


@given(frames)
@settings(max_examples=60, deadline=None)
def test_mean_and_population_deviation_follow_the_papers_formula(frames_TD):
    mean_D, std_D = np.split(mean_std(frames_TD), 2)
    exact = frames_TD.astype(np.float64)
    scale = np.abs(exact).max() + 1
    assert np.allclose(mean_D, exact.mean(axis=0), rtol=1e-6, atol=1e-6 * scale)
    assert np.allclose(std_D, exact.std(axis=0, ddof=0), rtol=1e-6, atol=1e-6 * scale)


@given(frames)
@settings(max_examples=40, deadline=None)
def test_quartiles_are_numpys(frames_TD):
    expected = np.quantile(frames_TD.astype(np.float64), (0.25, 0.5, 0.75), axis=0).astype(np.float32)
    assert np.array_equal(quartiles(frames_TD), expected.ravel())


def test_pooling_is_the_same_for_frames_that_lie_in_a_file(tmp_path: Path):
    frames_TD = np.random.default_rng(0).standard_normal((700, 300)).astype(np.float32)
    frames_TD.tofile(tmp_path / "frames")
    lying = np.memmap(tmp_path / "frames", np.float32, "r", shape=frames_TD.shape)
    for name, vector in pooled(frames_TD).items():
        assert vector.dtype == np.float32
        assert np.array_equal(pooled(lying)[name], vector), name


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 2, 2)])
def test_what_has_no_frames_is_refused(shape):
    for pool in (mean_std, quartiles):
        with pytest.raises(ValueError, match="T, D"):
            pool(np.zeros(shape, np.float32))


def test_padding_before_pooling_keeps_means_and_deviations_in_their_places():
    points_TPC = np.random.default_rng(1).standard_normal((5, 2, 3))
    padded = pad_points(points_TPC, 4)
    assert padded.shape == (5, 4, 3) and not padded[:, 2:].any()
    mean_D, std_D = np.split(mean_std(padded.reshape(5, -1)), 2)
    bare_mean, bare_std = np.split(mean_std(points_TPC.reshape(5, -1)), 2)
    assert np.array_equal(mean_D[:6], bare_mean) and np.array_equal(std_D[:6], bare_std)
    assert not mean_D[6:].any() and not std_D[6:].any()


def test_lengths_become_one_and_a_zero_vector_stays_zero():
    scaled = l2(np.array([[3.0, 4.0], [0.0, 0.0], [1e8, 0.0]], np.float32))
    assert np.allclose(scaled, [[0.6, 0.8], [0, 0], [1, 0]])


def test_the_z_score_of_batches_is_that_of_all_present_rows_at_once():
    rng = np.random.default_rng(2)
    matrix_BD = (rng.standard_normal((101, 7)) * 10.0 ** np.arange(7) + 5).astype(np.float32)
    matrix_BD[:, 3] = 4.25
    present_B = rng.random(101) < 0.7
    statistics = ZScoreStatistics.fit((matrix_BD[start : start + 13], present_B[start : start + 13]) for start in range(0, 101, 13))
    rows = matrix_BD[present_B].astype(np.float64)
    assert np.allclose(statistics.mean_D, rows.mean(axis=0))
    expected_scale = np.where(np.arange(7) == 3, 1.0, rows.std(axis=0))
    assert np.allclose(statistics.scale_D, expected_scale)
    scaled = normalise(matrix_BD, present_B, "z_score", statistics)
    assert not scaled[~present_B].any()
    assert np.allclose(np.delete(scaled[present_B], 3, axis=1).std(axis=0), 1, atol=1e-3)
    assert not scaled[:, 3].any()


def test_statistics_of_no_row_are_refused_and_z_score_needs_them():
    with pytest.raises(ValueError, match="no row"):
        ZScoreStatistics.fit([(np.zeros((3, 2), np.float32), np.zeros(3, bool))])
    with pytest.raises(ValueError, match=r"ZScoreStatistics\.fit"):
        normalise(np.zeros((1, 2), np.float32), np.ones(1, bool), "z_score")


def test_no_normalisation_changes_nothing_and_l2_leaves_absent_rows_zero():
    matrix_BD, present_B = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), np.array([True, False])
    assert normalise(matrix_BD, present_B, "none") is matrix_BD
    assert np.allclose(normalise(matrix_BD, present_B, "l2"), [[0.6, 0.8], [0, 0]])
