"""The errors of Murmuration: four kinds, each one line that says what, where and what to do."""

PLAY_AND_CONVERT = "play it to check; if it plays, convert it to WAV or FLAC"
"""The advice on a file that a library gives up on, for whatever reason."""


class MurmurError(Exception):
    """Any failure that Murmuration foresees; its text is one line for the user."""


class ConfigError(MurmurError):
    """The configuration or the command is missing something, malformed or inconsistent."""


class AudioError(MurmurError):
    """One audio file cannot be decoded or analysed; it becomes a `Failure`.

    Parameters
    ----------
    message : str
        What is wrong with the file.
    stage : str
        The step that failed: ``'read'``, ``'decode'`` or ``'describe'``.
    advice : str
        What the user can do about it.
    """

    def __init__(self, message: str, *, stage: str = "decode", advice: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.advice = advice

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword arguments when a worker process sends the error to its parent."""
        return _audio_error, (str(self), self.stage, self.advice)


class RecordError(MurmurError):
    """A message or a document does not fit its schema; a message goes to the dead letters."""


class BackendError(MurmurError):
    """Kafka, MongoDB, Spark or SQLite failed.

    Parameters
    ----------
    message : str
        What failed, where, and what to do.
    retriable : bool
        Whether the same call may succeed later.
    """

    def __init__(self, message: str, *, retriable: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable


class FencedError(BackendError):
    """Another producer took over this ``transactional.id``; this one must stop for good."""


class MadeAnewError(BackendError):
    """A topic was deleted and created again; what was read of it is void, and it is read from its beginning now."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retriable=True)


class TooLargeError(BackendError):
    """A message exceeds what its topic takes; it was not sent, and the producer lives on."""


def _audio_error(message: str, stage: str, advice: str) -> AudioError:
    return AudioError(message, stage=stage, advice=advice)
