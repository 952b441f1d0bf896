"""Files that want to do harm when they are loaded."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from mmengine.logging import HistoryBuffer


class Call:
    """Is pickled as a call, and maybe a state that the result is given."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def makes(path):
    """Something that, when it is loaded, makes a file."""
    return Call(os.mkdir, str(path))


def archive(path, content):
    torch.save(content, path)


def legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain_pickle(path, content):
    Path(path).write_bytes(pickle.dumps(content, protocol=2))


def tar(path, content):
    """The format of torch 0.1: a tar of pickles."""
    data = pickle.dumps(content, protocol=2)
    with tarfile.open(path, 'w') as file:
        for name in ('sys_info', 'storages', 'tensors', 'pickle'):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def script(path, content):
    """Looks like TorchScript, which torch before 2.6 runs."""
    archive(path, content)
    with zipfile.ZipFile(path, 'a') as file:
        file.writestr('archive/constants.pkl', pickle.dumps(content, protocol=2))


FORMATS = (archive, legacy, plain_pickle, tar, script)


def in_meta(harm):
    return dict(state_dict={'w': torch.ones(1)}, meta=dict(seed=harm))


def in_message_hub(harm):
    history = HistoryBuffer([1.0], [1])
    return dict(message_hub=dict(log_scalars=OrderedDict(loss=history, harm=harm)))


PLACES = (lambda harm: harm, lambda harm: [harm], in_meta, in_message_hub)


def rewritten(source, target, change=None, old=b'', new=b''):
    """Copies an archive with something changed.

    Args:
        source (Path): What torch has written.
        target (Path): The copy.
        change (Callable, optional): Gets name and content of each record, returns
            those to write. Defaults to None.
        old (bytes): What is replaced in the pickle. Defaults to nothing.
        new (bytes): What it is replaced by. Defaults to nothing.
    """
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, 'w') as write:
        for name in read.namelist():
            data = read.read(name)
            if old and name.endswith('data.pkl'):
                assert old in data
                data = data.replace(old, new)
            for item in [(name, data)] if change is None else change(name, data):
                write.writestr(*item)
