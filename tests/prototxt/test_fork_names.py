"""The names that errors give to forks."""

from imae.layers.registry import layer_types
from imae.prototxt import caffe_pb2
from imae.prototxt.fork_names import FORKS, fork_of_type
from imae.prototxt.schema import CAFFE


def test_what_is_supported_is_no_longer_called_missing() -> None:
    types = {*layer_types(), *caffe_pb2.V1LayerParameter.LayerType.keys()}
    for fork in FORKS:
        assert types.isdisjoint(fork.types.split()), fork.name
        for name in fork.fields.split():
            message, _, field = name.rpartition(".")
            known = CAFFE.nested_types_by_name.get(message or "LayerParameter")
            assert known is None or field not in known.fields_by_name, f"{fork.name}: {name}"


def test_a_type_of_two_forks_names_both() -> None:
    assert fork_of_type("VideoData").startswith(
        "; the SSD fork (weiliu89/caffe), yjxiong's fork (yjxiong/caffe) and "
    )
    assert fork_of_type("Nothing") == ""
