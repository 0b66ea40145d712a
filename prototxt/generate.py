"""Write caffe_pb2.py and caffe_pb2.pyi from caffe.proto. For developers; needs grpcio-tools.

caffe_pb2.py holds only the compiled description of the schema, not protoc's own Python: that code adds itself
to protobuf's default pool, where another package's caffe_pb2 would clash with it, and refuses older runtimes.

    python -m imae.prototxt.generate
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

HERE = Path(__file__).resolve().parent
MODULE = '''"""Written by generate.py from caffe.proto; do not edit."""

from typing import Any

# A serialized google.protobuf.FileDescriptorProto.
SERIALIZED = (
{literal})


def __getattr__(name: str) -> Any:
    """A message class, enum or enum value of package caffe: `caffe_pb2.NetParameter`, `caffe_pb2.TRAIN`."""
    from imae.prototxt import schema  # not at the top: schema.py reads SERIALIZED

    return schema.caffe_name(name)
'''
STUB = """# Written by generate.py from caffe.proto; do not edit.
# mypy: disable-error-code="type-arg, no-untyped-def"
{stub}
SERIALIZED: bytes
"""


def generate() -> dict[str, str]:
    """The texts of the two files, by name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", f"--pyi_out={out}",
             f"--descriptor_set_out={out / 'set'}", str(HERE / "caffe.proto")],
            check=True,
        )  # fmt: skip
        (file,) = FileDescriptorSet.FromString((out / "set").read_bytes()).file
        stub = (out / "caffe_pb2.pyi").read_text(encoding="utf-8")
    # Extensions are an interface of protoc's own classes; schema.py turns them into fields.
    stub = "".join(line for line in stub.splitlines(keepends=True) if "_python_message" not in line)
    data = file.SerializeToString(deterministic=True)
    literal = "".join(f"    {data[i : i + 32]!r}\n" for i in range(0, len(data), 32))
    return {"caffe_pb2.py": MODULE.format(literal=literal), "caffe_pb2.pyi": STUB.format(stub=stub)}


if __name__ == "__main__":
    for name, text in generate().items():
        (HERE / name).write_text(text, encoding="utf-8")
