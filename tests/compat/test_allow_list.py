"""What a checkpoint may hold, and what it must not be able to do."""

import itertools
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mdeq_mm.compat import allow_list

pytestmark = pytest.mark.versions
HAS_SAFE_GLOBALS = hasattr(torch.serialization, 'add_safe_globals')
needs_safe_globals = pytest.mark.skipif(
    not HAS_SAFE_GLOBALS, reason='this torch has no list of safe classes'
)
# numpy's own functions, whatever it calls the module they are in.
scalar = np.float64(0).__reduce__()[0]
reconstruct = np.zeros(1).__reduce__()[0]
FIELD_OF_AN_OBJECT = (('a',), {'a': (np.dtype('O'), 0)})
# States that numpy's own dtype takes, one value per entry of the tuple.
DTYPE_STATES = (
    (0, 1, 3, 4),
    ('|', '<', '>', '='),
    (None, (np.dtype('O'), (2,))),
    *((None, value) for value in FIELD_OF_AN_OBJECT),
    (-1, 8, 10**9),
    (-1, 1, 64),
    (0, 1, 63, 255),
)


class Reduced:
    """Is pickled as a call, and maybe a state that the result is given."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def load(tmp_path):
    """Saves an object as the meta data of a checkpoint, and loads it."""

    def load(content):
        path = tmp_path / 'checkpoint.pth'
        torch.save(dict(meta=content), path)
        kwargs = dict(weights_only=True) if HAS_SAFE_GLOBALS else {}
        return torch.load(path, **kwargs)['meta']

    return load


class TestTrainingCheckpoint:
    def test_what_mmengine_writes(self, load):
        history = HistoryBuffer([1.0, 2.0], [1, 1])
        history.update(3.0)
        content = dict(
            history=history,
            float32=np.arange(3, dtype=np.float32),
            columns=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            big_endian=np.arange(3, dtype='>i4'),
            number=np.float64(0.5),
            integer=np.int64(-3),
            flag=np.bool_(True),
            state=torch.ones(2),
        )
        loaded = load(content)
        assert type(loaded['history']) is HistoryBuffer
        assert loaded['history'].mean() == 2
        for array in loaded['history'].data:
            assert type(array) is np.ndarray
        for name in ('float32', 'columns', 'big_endian'):
            np.testing.assert_array_equal(loaded[name], content[name])
            # numpy brings bytes into the order of the machine as it loads them.
            assert loaded[name].dtype == content[name].dtype.newbyteorder('=')
        for name in ('number', 'integer', 'flag'):
            assert loaded[name] == content[name]
            assert type(loaded[name]) is type(content[name])

    def test_saved_again(self, load):
        """A resumed run writes what it has loaded; any process can read that."""
        content = [HistoryBuffer([1.0], [1]), np.arange(3)]
        loaded = load(load(content))
        assert b'mdeq_mm' not in pickle.dumps(loaded)
        history, array = pickle.loads(pickle.dumps(loaded))
        history.update(2.0)
        assert history.data[0].tolist() == [1, 2]
        assert type(array) is np.ndarray

    def test_file_has_no_say_in_the_methods_of_histories(self):
        before = dict(HistoryBuffer._statistics_methods)
        history = allow_list.LoadedHistoryBuffer.__new__(allow_list.LoadedHistoryBuffer)
        values = np.ones(2).view(allow_list.PlainArray)
        history.__setstate__(
            dict(
                _log_history=values,
                _count_history=values,
                max_length=9,
                statistics_methods={'mean': HistoryBuffer.max},
            )
        )
        assert type(history) is HistoryBuffer
        assert HistoryBuffer._statistics_methods == before


@needs_safe_globals
class TestHostileCheckpoint:
    @pytest.mark.parametrize(
        'hostile',
        [
            pytest.param(
                Reduced(
                    scalar,
                    Reduced(
                        np.dtype,
                        'V8',
                        False,
                        True,
                        state=(
                            3,
                            '|',
                            None,
                            ('a',),
                            {'a': (np.dtype('O'), 0)},
                            8,
                            1,
                            0,
                        ),
                    ),
                    b'A' * 8,
                ),
                id='address-in-a-scalar',
            ),
            pytest.param(
                Reduced(
                    reconstruct,
                    np.ndarray,
                    (0,),
                    b'b',
                    state=(1, (1,), Reduced(np.dtype, 'O'), False, [1]),
                ),
                id='array-of-objects',
            ),
            pytest.param(
                Reduced(
                    reconstruct,
                    np.ndarray,
                    (0,),
                    b'b',
                    state=(1, (10**9,), Reduced(np.dtype, 'f8'), False, b'A' * 8),
                ),
                id='more-numbers-than-bytes',
            ),
            pytest.param(
                Reduced(
                    reconstruct,
                    np.ndarray,
                    (0,),
                    b'b',
                    state=(1, (-1,), Reduced(np.dtype, 'f8'), False, b'A' * 8),
                ),
                id='negative-size',
            ),
            pytest.param(
                Reduced(reconstruct, np.ndarray, (10**12,), b'b'), id='huge-array'
            ),
            pytest.param(
                Reduced(scalar, Reduced(np.dtype, 'f8'), b'A' * 7), id='short-scalar'
            ),
            pytest.param(Reduced(np.ndarray, (10**12,)), id='array-by-its-class'),
            pytest.param(Reduced(getattr, np.ndarray, 'tofile'), id='getattr'),
            pytest.param(
                Reduced(getattr, HistoryBuffer, '__init__'), id='getattr-of-a-history'
            ),
        ],
    )
    def test_refused(self, load, hostile):
        with pytest.raises((pickle.UnpicklingError, TypeError)):
            load(hostile)

    @pytest.mark.parametrize(
        'code',
        ['O', 'V8', 'S4', 'U4', 'M8[s]', 'm8[s]', 'f8,O', '(2,)f8', 'f99', '', 8, None],
    )
    def test_refused_dtypes(self, load, code):
        with pytest.raises(pickle.UnpicklingError, match='may not hold the dtype'):
            load(Reduced(np.dtype, code))

    def test_numpy_itself_is_not_on_the_list(self):
        listed = [
            entry[0] if isinstance(entry, tuple) else entry
            for entry in torch.serialization.get_safe_globals()
        ]
        for entry in listed:
            module = getattr(entry, '__module__', None) or ''
            assert not module.startswith('numpy'), entry

    def test_states_of_dtypes(self):
        """Every state that numpy would take is refused or changes the byte order."""
        n_taken = 0
        for code in ('b1', 'i1', 'i4', 'u8', 'f2', 'f8', 'c16'):
            for state in itertools.product(*DTYPE_STATES):
                stand_in = allow_list.PlainDtype(code)
                try:
                    stand_in.__setstate__(state)
                except pickle.UnpicklingError:
                    continue
                n_taken += 1
                dtype = stand_in.dtype
                assert dtype.newbyteorder('=') == np.dtype(code)
                assert not dtype.hasobject
                assert dtype.fields is None
                assert dtype.itemsize == np.dtype(code).itemsize
        assert n_taken == 7 * 4

    @pytest.mark.parametrize(
        'state',
        [
            None,
            [],
            {},
            {'max_length': 3},
            dict(_log_history=[1.0], _count_history=[1], max_length=3),
            dict(_log_history=SimpleNamespace(), _count_history=1, max_length=3),
            {'max_length': 3, '__class__': 1},
        ],
    )
    def test_states_of_histories(self, state):
        history = allow_list.LoadedHistoryBuffer.__new__(allow_list.LoadedHistoryBuffer)
        with pytest.raises(pickle.UnpicklingError, match='log history'):
            history.__setstate__(state)

    @pytest.mark.parametrize(
        'state',
        [
            None,
            (),
            (1, (1,), np.dtype('f8'), False, b'A' * 8),
            (1, (1,), 'f8', False, b'A' * 8),
            (2, (1,), allow_list.PlainDtype('f8'), False, b'A' * 8),
            (1, [1], allow_list.PlainDtype('f8'), False, b'A' * 8),
            (1, (True,), allow_list.PlainDtype('f8'), False, b'A' * 8),
            (1, (1,), allow_list.PlainDtype('f8'), 7, b'A' * 8),
            (1, (1,), allow_list.PlainDtype('f8'), False, 'A' * 8),
            (1, (1,), allow_list.PlainDtype('f8'), False, [1.0]),
        ],
    )
    def test_states_of_arrays(self, state):
        array = np.zeros(0).view(allow_list.PlainArray)
        with pytest.raises(pickle.UnpicklingError, match='strange state'):
            array.__setstate__(state)
