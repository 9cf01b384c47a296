"""Data sets are sorted by class; what is measured must not be the first classes alone."""

from companion.training import load_data, runs


def test_the_measured_pairs_are_of_all_classes(tiny, results):
    config = tiny.replace(n_train=1000, n_validation=200)
    method, images = runs.initial(config), load_data(config).train
    assert images.labels[:100].unique().tolist() == [0]  # sorted, so the first images would not do
    for pairs in (100, 400):
        _, _, y = runs.two_views(method, config, images, pairs)
        assert len(y) == pairs
        counts = y.bincount(minlength=10)
        assert counts.min() >= pairs / 10 / 3, counts
    _, _, again = runs.two_views(method, config.replace(seed=5), images, 400)
    assert again.equal(y)  # the same images for every seed, in other views
