"""ShuffleChannel beyond the recorded cases."""

import torch
from single_layer import build, check_contract, check_gradient, check_onnx, normal, refused, run


def shuffle(group: int) -> str:
    return f'type: "ShuffleChannel" shuffle_channel_param {{ group: {group} }}'


def test_contract_gradient_and_export() -> None:
    for x in (normal(2, 6, 2, 3), normal(2, 6)):
        check_contract(shuffle(3), x)
        check_gradient(shuffle(2), x)
        check_onnx(shuffle(3), x)


def test_channels_are_taken_from_the_groups_in_turn() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    top = run(build(shuffle(2), (1, 6, 1, 1)), x)[0]
    assert top.flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(run(build('type: "ShuffleChannel"', (1, 6, 1, 1)), x)[0], x)
    back = run(build(shuffle(3), (1, 6, 1, 1)), top)[0]
    assert torch.equal(back, x)


def test_what_is_refused() -> None:
    with refused("group must be greater than 0; got 0"):
        build(shuffle(0), (1, 6, 2, 2))
    with refused("the number of channels must be a multiple of group 4; got 6"):
        build(shuffle(4), (1, 6, 2, 2))
    with refused("bottom[0] must have 2 to 4 axes, (N, C, ...); got (6,)"):
        build(shuffle(2), (6,))
    with refused("does not allow in-place computation"):
        build(f'{shuffle(2)} bottom: "x" top: "x"', (1, 6, 2, 2))
