"""Make the net of a record again from its run. Records keep the SHA-256 of the net's text, not the text.

The text is that of `train_val.prototxt` in the run's folder (`training.train_val`), for CIFAR-10 itself.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from imae.paper.data import named_images
from imae.paper.record import Record
from imae.paper.training import train_val
from imae.prototxt import NetParameter, SolverParameter
from imae.prototxt.caffe_pb2 import WeightNormalization
from imae.prototxt.text import parse_text, to_text


class RecordedNet(NamedTuple):
    """The text of a net that computes the same as the net of a record.

    note   how it differs from the text of the run; "" if the digests are equal
    """

    text: str
    note: str


def recorded_net(record: Record) -> RecordedNet:
    """The net of a record, as today's code writes it; ImaeError for a run that it refuses."""
    net = train_val(record.run, named_images(record.run, work_folder(record)))
    text = to_text(net)
    if digest(text) == record.net_sha256:
        return RecordedNet(text, "")
    if not record.net_sha256:
        return RecordedNet(text, "the record has no digest of its net to compare with")
    older, fields = before_epsilon(net)
    if digest(older) == record.net_sha256:
        return RecordedNet(
            text,
            f"the run's own file lacks {' and '.join(fields)}, which IMAELoss had by default at that time; "
            f"without that it is this text, SHA-256 {record.net_sha256}",
        )
    return RecordedNet(
        text,
        f"this is not the text of the record, whose SHA-256 is {record.net_sha256}: the run had other images "
        f"than CIFAR-10's 50,000 and 10,000, or its net was written by other code{_of_commit(record)}",
    )


def before_epsilon(net: NetParameter) -> tuple[str, list[str]]:
    """The text of a net as written before IMAELoss had an epsilon, and the fields that the text lacked.

    At that time the loss was exact, and divided by the batch size unless a normalizer was given. Today's
    default of epsilon is different, so this text now describes a different net.
    """
    older, fields = NetParameter(), []
    older.CopyFrom(net)
    for layer in older.layer:
        loss = layer.imae_loss_param
        if loss.HasField("normalizer") and loss.normalizer == WeightNormalization.BATCH_SIZE:
            loss.ClearField("normalizer")
            fields.append("normalizer: BATCH_SIZE")
        if loss.HasField("epsilon") and loss.epsilon == 0:
            loss.ClearField("epsilon")
            fields.append("epsilon: 0")
    return to_text(older), fields


def work_folder(record: Record) -> Path:
    """The folder of --work, from the solver's path of the net: WORK/runs/NAME/train_val.prototxt."""
    solver = parse_text(record.solver, SolverParameter, f"solver of {record.run.name}")
    return Path(*PurePosixPath(solver.net).parts[:-3])


def digest(text: str) -> str:
    """The digest that records keep: SHA-256 of the UTF-8 text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _of_commit(record: Record) -> str:
    return f", commit {record.commit}" if record.commit else ""
