import numpy as np
import pytest

from mrcnn_tf.data.epochs import Planner, nearest_bucket, rows_of_shard


def _planner(buckets, *, factors=None, batch_size=4, seed=3, shuffled=True):
    buckets = np.array(buckets)
    return Planner(buckets, np.ones(len(buckets)) if factors is None else np.array(factors), batch_size, seed, shuffled)


def test_an_epoch_is_a_permutation_with_its_own_draws():
    planner = _planner([0] * 1000, batch_size=10)
    plan, again, other = planner.draw(0), planner.draw(0), planner.draw(1)
    assert sorted(plan.image) == list(range(1000))
    assert len(set(plan.seed)) == 1000
    assert plan.seed.min() >= 0
    assert abs(np.bincount(plan.other, minlength=1000).mean() - 1) < 0.01
    for one, two, three in zip(plan[:3], again, other, strict=False):
        np.testing.assert_array_equal(one, two)
        assert (one != three).any()
    assert (_planner([0] * 1000, batch_size=10, seed=4).draw(0).image != plan.image).any()


def test_batches_are_of_one_bucket_and_lose_only_what_fills_none():
    buckets = np.random.default_rng(0).integers(0, 3, 101)
    planner = _planner(buckets, batch_size=8)
    counts = np.bincount(buckets)
    assert planner.num_batches == sum(count // 8 for count in counts)
    orders = []
    for epoch in range(5):
        plan = planner.draw(epoch)
        of_batches = plan.bucket.reshape(-1, 8)
        assert (of_batches == of_batches[:, :1]).all()
        np.testing.assert_array_equal(plan.bucket, buckets[plan.image])
        assert len(set(plan.image)) == len(plan.image) == 8 * planner.num_batches
        np.testing.assert_array_equal(np.bincount(of_batches[:, 0]), counts // 8)
        orders.append(of_batches[:, 0].tolist())
    assert len({tuple(order) for order in orders}) == 5
    # What is left out differs from epoch to epoch.
    assert set(np.concatenate([planner.draw(epoch).image for epoch in range(20)])) == set(range(101))


def test_without_shuffling_the_order_is_that_of_the_pictures():
    planner = _planner([1, 0, 0, 1, 0, 0, 0], batch_size=2, shuffled=False)
    for epoch in range(2):
        assert planner.draw(epoch).image.tolist() == [1, 2, 4, 5, 0, 3]


def test_repeats_fill_epochs_of_equal_length():
    factors = np.where(np.arange(50) < 10, 2.5, 1.0)
    planner = _planner([0, 1] * 25, factors=factors, batch_size=4)
    # 12.5 + 20 = 32.5 in each bucket.
    assert planner.num_batches == 16
    seen = np.zeros(50)
    for epoch in range(300):
        plan = planner.draw(epoch)
        assert len(plan.image) == 64
        seen += np.bincount(plan.image, minlength=50)
    np.testing.assert_allclose(seen / 300, factors * 64 / 65, rtol=0.06)


def test_an_empty_bucket_and_one_with_too_few():
    assert _planner([2, 2, 2, 2, 0, 0, 0]).num_batches == 1
    assert _planner([0, 1, 2]).num_batches == 0


def test_the_nearest_bucket_goes_by_the_ratio():
    buckets = [(832, 1344), (1344, 832), (1024, 1024)]
    sizes = [(500, 600), (427, 640), (640, 427), (500, 500), (1, 900), (900, 1)]
    assert nearest_bucket(sizes, buckets).tolist() == [2, 0, 1, 2, 0, 1]
    # A square picture is as near to one as to the other.
    assert nearest_bucket([(7, 7), (4, 5), (5, 4)], buckets[:2]).tolist() == [0, 0, 1]
    assert nearest_bucket([(3, 5)], [(64, 64)]).tolist() == [0]


def test_shards_are_equal_stretches_of_a_batch():
    assert [rows_of_shard((worker, 3), 12) for worker in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(ValueError, match="12 cannot be divided evenly among 5 workers"):
        rows_of_shard((0, 5), 12)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        rows_of_shard((2, 2), 12)
