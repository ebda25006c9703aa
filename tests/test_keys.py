"""A random stream has an address: nothing depends on order, on other users, or on a global generator."""

import numpy as np
import pytest
from scipy import stats

from fedacdp.keys import Key, philox4x32


def words(*values: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], dtype=np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, answer):
    assert tuple(int(word[0]) for word in philox4x32(words(*counter), key)) == answer


def uniform_by_hand(seed: int, path: tuple[int, ...], user: int, place: int) -> float:
    """The number at `place` of a user, in whole numbers of Python as the paper writes the ten rounds."""
    key = [int(word) for word in np.random.SeedSequence(seed, spawn_key=path).generate_state(2, np.uint32)]
    block, odd = divmod(place, 2)
    c = [block % 2**32, block >> 32, user % 2**32, user >> 32]
    for turn in range(10):
        k0, k1 = (key[0] + turn * 0x9E3779B9) % 2**32, (key[1] + turn * 0xBB67AE85) % 2**32
        left, right = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(right >> 32) ^ c[1] ^ k0, right % 2**32, (left >> 32) ^ c[3] ^ k1, left % 2**32]
    return (((c[2 * odd] << 32) | c[2 * odd + 1]) >> 11) / 2**53


@pytest.mark.parametrize(("users", "count"), [(70_000, 1), (1500, 51), (3, 40_001), (1, 1), (0, 3), (4, 0)])
def test_uniforms_are_those_of_philox_one_number_at_a_time(users, count):
    key = Key(9).fold("a", 2)
    ids = np.arange(users) * 77_777_777_777 % 2**40
    found = key.uniforms(ids, count)
    assert found.shape == (users, count)
    assert found.dtype == np.float64
    rows, columns = np.random.default_rng(0).integers(0, (max(1, users), max(1, count)), (300, 2)).T
    for row, column in {(0, 0), (users - 1, count - 1), *zip(rows.tolist(), columns.tolist(), strict=True)}:
        if users and count:
            assert found[row, column] == uniform_by_hand(9, key.path, int(ids[row]), column)


def test_a_users_numbers_do_not_depend_on_who_else_is_asked_for():
    key = Key(5).fold("order", 3)
    together = key.uniforms(np.array([9, 2, 700_000, 4]), 7)
    alone = np.concatenate([key.uniforms(np.array([user]), 7) for user in (9, 2, 700_000, 4)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[:, :4], key.uniforms(np.array([9, 2, 700_000, 4]), 4))


def test_uniforms_are_uniform_and_independent_between_addresses():
    key = Key(1).fold("a")
    draws = key.uniforms(np.arange(20_000), 10)
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-6
    assert stats.kstest(draws.ravel() ** 1.05, "uniform").pvalue < 1e-6  # the test can fail
    bound = 5 / np.sqrt(len(draws))
    assert np.abs(np.corrcoef(draws.T) - np.eye(10)).max() < bound
    for other in (Key(1).fold("b"), Key(2).fold("a"), Key(1).fold("a", 0)):
        assert abs(np.corrcoef(draws[:, 0], other.uniforms(np.arange(20_000), 1)[:, 0])[0, 1]) < bound
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < bound


def test_a_key_ignores_global_seeds_and_remembers_only_its_address():
    np.random.seed(0)  # noqa: NPY002
    first = Key(0).fold("noise", 4).rng().standard_normal(5)
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(first, Key(0).fold("noise").fold(4).rng().standard_normal(5))
    assert not np.array_equal(first, Key(2**32).fold("noise", 4).rng().standard_normal(5))


def test_negative_addresses_are_refused():
    with pytest.raises(ValueError, match="-1"):
        Key(0).fold(-1)


def test_normals_are_normal_and_independent_between_addresses():
    key = Key(1).fold("noise")
    draws = key.normals(np.arange(2000), 501)  # an odd number: the last pair is cut
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-6
    assert stats.kstest(draws.ravel() * 1.02, "norm").pvalue < 1e-6  # the test can fail
    count = draws.size
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], count) / count
    assert low < (draws.astype(float) ** 2).mean() < high
    tail = stats.binomtest(int((np.abs(draws) > 4).sum()), count, 2 * stats.norm.sf(4))
    assert tail.pvalue > 1e-6
    bound = 5.5 / np.sqrt(500)
    assert np.abs(np.corrcoef(draws[:200]) - np.eye(200)).max() < bound  # users
    assert np.abs(np.corrcoef(draws[:, :60].T) - np.eye(60)).max() < 5.5 / np.sqrt(2000)  # positions
    half = 251
    pair = np.corrcoef(draws[:, : half - 1].ravel() ** 2, draws[:, half:].ravel() ** 2)[0, 1]  # r cos a, r sin a
    assert abs(pair) < 5.5 / np.sqrt(count / 2)
    for other in (Key(2).fold("noise"), Key(1).fold("noise", 0), Key(1).fold("other")):
        assert abs(np.corrcoef(draws[:500].ravel(), other.normals(np.arange(500), 501).ravel())[0, 1]) < 0.012


def test_a_users_normals_depend_on_its_own_address_and_count_only():
    key = Key(3).fold("a", 2)
    together = key.normals(np.array([9, 2, 700_000]), np.array([6, 3, 0]))
    assert together.shape == (3, 6)
    np.testing.assert_array_equal(together[1, :3], key.normals(np.array([2]), 3)[0])
    np.testing.assert_array_equal(together[0], key.normals(np.array([9]), 6)[0])
    assert not together[1, 3:].any()
    assert not together[2].any()
    assert key.normals(np.zeros(0, int), 4).shape == (0, 4)
