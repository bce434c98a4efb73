"""A form with a recording in it, read from a request onto disk, its fields checked.

The name of the file is for messages only: it is never opened, and nothing is written under it.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sprachbund.serving.schemas import RefusalError, field_fault

Form = TypeVar("Form", bound=BaseModel)

MAX_FIELDS = 1100
"""The words of `HotWordList`, each of which is a field, and all other fields."""
MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS_BYTES = 1 << 20
"""Size of all fields together, which are kept in memory."""
_LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A recording that was sent.

    Attributes:
        file: a seekable binary file, which carries no name that the client chose.
        name: name of messages; of no other use, since the client chose it.
    """

    file: BinaryIO
    name: str

    @classmethod
    def of(cls, sent: UploadFile) -> "Upload":
        """The file of a form, with what is printable of the last part of its name."""
        last = (sent.filename or "").replace("\\", "/").rpartition("/")[2]
        printable = "".join(c for c in last if c.isprintable()).strip()
        return cls(file=sent.file, name=printable[:_LONGEST_NAME] or "the file")


@asynccontextmanager
async def read_form(request: Request, form: type[Form]) -> AsyncIterator[tuple[Form, Upload]]:
    """The fields and the recording of a multipart request; what was stored for it is gone afterwards.

    Raises:
        RefusalError: 400 for another kind of body, a field that is missing, unknown, doubled or wrong; 415 for a
            body that is no form; 507 where there is no room to store it.
    """
    _check_content_type(request, "multipart/form-data")
    async with _stored(request) as data:
        file = data.get("file")
        if not isinstance(file, UploadFile):
            raise RefusalError(400, "there is no file; send the recording as 'file'", param="file")
        yield checked(form, _fields(data)), Upload.of(file)


class _FormParser(MultiPartParser):
    """A parser of forms with one file, whose fields are bounded one by one and together."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers, stream, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        self._fields_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        super().on_part_data(data, start, end)
        if self._current_part.file is None:
            self._fields_bytes += end - start
            if self._fields_bytes > MAX_FIELDS_BYTES:
                raise MultiPartException(f"Fields exceeded {MAX_FIELDS_BYTES} bytes together.")


@asynccontextmanager
async def _stored(request: Request) -> AsyncIterator[FormData]:
    """A body, its file on disk. Raises RefusalError: 507, where there is no room for it, or no descriptor."""
    try:
        async with aclosing(request.stream()) as stream:
            data = await _FormParser(request.headers, stream).parse()
    except MultiPartException as error:
        raise RefusalError(400, error.message) from error
    except OSError as error:
        raise RefusalError(
            507,
            f"the recording cannot be stored here ({error.strerror or error}); try again later",
            code="no_storage",
            retry_after_s=30,
        ) from error
    try:
        yield data
    finally:
        await data.close()


def checked(form: type[Form], values: Any) -> Form:
    """`values` as a `form`. Raises RefusalError: 400, which names the first field at fault."""
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise refusal_of_fields(error, form) from error


def refusal_of_fields(error: ValidationError, form: type[BaseModel]) -> RefusalError:
    """Error that names the field at fault and the reason; for an unknown field, the known ones."""
    known = [field.alias or name for name, field in form.model_fields.items()]
    fault = field_fault(error.errors(), known=known)
    return RefusalError(400, fault.reason[:500], code=fault.kind, param=fault.field or None)


def _check_content_type(request: Request, wanted: str) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise RefusalError(
            415, f"the content type is {kind or 'not given'}; send {wanted}", code="wrong_content_type"
        )


def _fields(data: FormData) -> dict[str, Any]:
    """Of the form, without the file; names ending in [] hold lists."""
    fields: dict[str, Any] = {}
    for name, value in data.multi_items():
        if name == "file" and isinstance(value, UploadFile):
            continue
        if isinstance(value, UploadFile):
            raise RefusalError(400, f"the field {name!r} is a file; send text", param=name)
        if name.endswith("[]"):
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise RefusalError(400, f"the field {name!r} is there twice; send it once", param=name)
        else:
            fields[name] = value
    return fields


async def checked_json(request: Request, form: type[Form]) -> Form:
    """The JSON body of a request. Raises RefusalError: 415 for another content type, 400 for wrong fields."""
    _check_content_type(request, "application/json")
    try:
        return form.model_validate_json(await request.body())
    except ValidationError as error:
        raise refusal_of_fields(error, form) from error
