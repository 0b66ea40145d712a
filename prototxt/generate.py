"""Write caffe_pb2.py and caffe_pb2.pyi from caffe.proto and forks.proto. For developers; needs grpcio-tools.

caffe_pb2.py holds only the compiled description of the schema, not protoc's own Python: that code adds itself
to protobuf's default pool, where another package's caffe_pb2 would clash with it, and refuses older runtimes.

    python -m imae.prototxt.generate
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from imae.prototxt.fork_names import FORK_NUMBERS

HERE = Path(__file__).resolve().parent
MODULE = '''"""Written by generate.py from caffe.proto and forks.proto; do not edit."""

from typing import Any

# A serialized google.protobuf.FileDescriptorProto.
SERIALIZED = (
{literal})


def __getattr__(name: str) -> Any:
    """A message class, enum or enum value of package caffe: `caffe_pb2.NetParameter`, `caffe_pb2.TRAIN`."""
    from imae.prototxt import schema  # not at the top: schema.py reads SERIALIZED

    return schema.caffe_name(name)
'''
STUB = """# Written by generate.py from caffe.proto and forks.proto; do not edit.
# mypy: disable-error-code="type-arg, no-untyped-def"
{stub}
SERIALIZED: bytes
"""


def generate() -> dict[str, str]:
    """The texts of the two files, by name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        _protoc(f"-I{HERE}", f"--descriptor_set_out={out / 'set'}", "caffe.proto", "forks.proto")
        file = merge(*FileDescriptorSet.FromString((out / "set").read_bytes()).file)
        (out / "merged").write_bytes(FileDescriptorSet(file=[file]).SerializeToString())
        _protoc(f"--descriptor_set_in={out / 'merged'}", f"--pyi_out={out}", "caffe.proto")
        stub = (out / "caffe_pb2.pyi").read_text(encoding="utf-8")
    # Extensions are an interface of protoc's own classes; schema.py turns them into fields.
    stub = "".join(line for line in stub.splitlines(keepends=True) if "_python_message" not in line)
    data = file.SerializeToString(deterministic=True)
    literal = "".join(f"    {data[i : i + 32]!r}\n" for i in range(0, len(data), 32))
    return {"caffe_pb2.py": MODULE.format(literal=literal), "caffe_pb2.pyi": STUB.format(stub=stub)}


def merge(caffe: FileDescriptorProto, forks: FileDescriptorProto) -> FileDescriptorProto:
    """One file with the messages of both; what `forks` extends Caffe's messages by are fields of them."""
    merged = FileDescriptorProto()
    merged.CopyFrom(caffe)
    messages: dict[str, DescriptorProto] = {
        f".caffe.{message.name}": message for message in merged.message_type
    }
    # In a message of their own where two messages get fields of one name.
    scopes = [message for message in forks.message_type if message.extension]
    for field in [*forks.extension, *(field for scope in scopes for field in scope.extension)]:
        extended = messages[field.extendee]
        if field.number not in FORK_NUMBERS or field.name in {other.name for other in extended.field}:
            raise ValueError(f"forks.proto: {extended.name}.{field.name} = {field.number} is not free")
        extended.field.append(field)
        extended.field[-1].ClearField("extendee")
    for message in messages.values():
        plugins = [entry for entry in message.extension_range if entry.start not in FORK_NUMBERS]
        del message.extension_range[:]
        message.extension_range.extend(plugins)
    merged.message_type.extend(message for message in forks.message_type if message not in scopes)
    merged.enum_type.extend(forks.enum_type)
    return merged


def _protoc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True)


if __name__ == "__main__":
    for name, text in generate().items():
        (HERE / name).write_text(text, encoding="utf-8")
