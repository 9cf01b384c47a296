"""MoCo: its loss by hand, its queue in order, its key network by lightly's update, its groups one by one."""

import pytest
import torch
from torch.nn.functional import normalize

from companion.errors import CompanionError
from companion.training import Batch, Config, MoCo, Views, train
from companion.training.augment import SimCLR
from companion.training.data import Split

SIZE, M = 40, 4
SPLIT = Split(
    torch.randint(0, 256, (SIZE, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(SIZE) % 4,
)
CONFIG = Config(
    n_train=SIZE, batch_size=M, n_validation=0, width=4, projector_hidden=16, projector_dim=8, method=MoCo(queue=12)
)


def build(**changes):
    torch.manual_seed(0)
    config = CONFIG.replace(**changes)
    return config.method.build(config, SPLIT)


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(M, 3, 16, 16, generator=g), torch.rand(M, 3, 16, 16, generator=g), SPLIT.labels[:M])


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_loss_is_that_of_the_paper_by_hand(temperature):
    """He et al. 2020, Eq. 1: each query against its key and the whole queue, nothing else."""
    method, given = build(temperature=temperature).eval(), batch()
    q, k = normalize(method.model(given.first)), normalize(method.key_model(given.second))
    values = []
    for i in range(M):
        logits = torch.stack([q[i] @ k[i], *(q[i] @ old for old in method.queue)]) / temperature
        values.append(logits.logsumexp(0) - logits[0])
    torch.testing.assert_close(method.loss(given), torch.stack(values).mean())


def test_gradients_flow_to_the_queries_alone():
    method = build().train()
    method.loss(batch()).backward()
    assert all(p.grad is not None and p.grad.any() for p in method.model.parameters())
    assert all(p.grad is None for p in method.key_model.parameters())


def test_the_queue_lets_the_oldest_go_first():
    method, first = build(), build().queue
    seen = []
    for seed in range(5):
        method.loss(batch(seed))
        seen.append(method.keys.clone())
        before = method.queue.clone()
        method.after_step()
        torch.testing.assert_close(method.queue, torch.cat([before, seen[-1]])[M:])
    torch.testing.assert_close(method.queue, torch.cat(seen[2:]))
    torch.testing.assert_close(first.norm(dim=1), torch.ones(12))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_the_key_network_follows_as_lightlys_does(momentum):
    update = pytest.importorskip("lightly.models.utils").update_momentum
    method, other = build(key_momentum=momentum), build()
    with torch.no_grad():
        for p, q in zip(method.model.parameters(), other.model.parameters(), strict=True):
            p.add_(1)
            q.copy_(p)
    start = [p.clone() for p in method.key_model.parameters()]
    method.loss(batch())
    method.after_step()
    update(other.model, other.key_model, momentum)
    for ours, theirs, old in zip(
        method.key_model.parameters(), other.key_model.parameters(), start, strict=True
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs)
        if momentum == 1:
            torch.testing.assert_close(ours, old)


def test_the_loss_is_lightlys_with_a_memory_bank():
    criterion = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.2, memory_bank_size=(12, 8))
    method, given = build().eval(), batch()
    found = method.loss(given)
    criterion.memory_bank.bank = method.queue.clone()
    criterion.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    theirs = criterion(method.model(given.first), method.keys)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)


def test_batch_norm_sees_one_group_at_a_time():
    method, given = build(batch_norm_groups=2, shuffle=False).train(), batch()
    found = method._in_groups(method.model, given.first)
    alone = build().train().model
    by_hand = torch.cat([alone(given.first[:2]), alone(given.first[2:])])
    torch.testing.assert_close(found, by_hand)
    assert not torch.allclose(found, build().train().model(given.first), atol=1e-3)


def test_shuffled_keys_come_back_in_the_order_of_the_images_but_from_other_groups():
    method, given = build(batch_norm_groups=2).train(), batch()
    torch.manual_seed(3)  # an order that moves images between the groups
    order = torch.rand(M).argsort()
    assert {*order[:2].tolist()} not in ({0, 1}, {2, 3})
    torch.manual_seed(3)
    method.loss(given)
    expected = torch.empty_like(method.keys)
    expected[order] = normalize(method._in_groups(build(batch_norm_groups=2).train().key_model, given.second[order]))
    torch.testing.assert_close(method.keys, expected)


def test_a_resumed_training_ends_with_the_same_queue_and_key_network(tmp_path):
    config = CONFIG.replace(epochs=2, warmup_epochs=0, learning_rate=0.1, batch_norm_groups=2)
    source, path = Views(SPLIT, SimCLR().build(16), M, seed=0), tmp_path / ".checkpoint.pt"

    def stop(method):
        if path.exists():
            raise KeyboardInterrupt
        return {}

    whole, first, resumed = (build(batch_norm_groups=2) for _ in range(3))
    train(whole, source, config)
    with pytest.raises(KeyboardInterrupt):
        train(first, source, config, checkpoint=path, track=stop)
    train(resumed, source, config, checkpoint=path)
    assert "queue" in whole.state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"queue": 10}, "queue is 10 and batch_size 4: the batch has to divide the queue"),
        ({"queue": 0}, "queue is 0"),
        ({"key_momentum": 1.1}, "key_momentum is 1.1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"batch_norm_groups": 3}, "batch_norm_groups is 3 and batch_size 4"),
        ({"batch_norm_groups": 4}, "of two images or more"),
        ({"shuffle": 1}, "shuffle is 1"),
    ],
)
def test_bad_values_are_told(changes, expected):
    with pytest.raises(CompanionError, match=expected):
        CONFIG.replace(**changes)


def test_a_queue_longer_than_the_data_is_refused():
    with pytest.raises(CompanionError, match="queue is 40 and batch_size 4, more than the 40 training images"):
        build(queue=40)
    build(queue=36)
