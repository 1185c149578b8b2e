"""Storage in an S3 bucket, through boto3; endpoint, region and credentials come by boto3's usual means."""

from __future__ import annotations

import io
import mimetypes
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, BinaryIO

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from s3transfer.exceptions import RetriesExceededError

from dgate_core.storage.contract import ObjectInfo
from dgate_core.storage.files import os_errors, place_file
from dgate_core.storage.keys import check_key, check_prefix, join_keys
from dgate_core.storage.s3_client import RETRIED_CODES, confirm_bucket, retry_while, s3_client
from dgate_core.storage.s3_errors import (
    CONFLICT_CODES,
    EXISTING_CODES,
    MISSING_CODES,
    S3_ERRORS,
    error_code,
    may_have_happened,
    missing_object,
    s3_errors,
)
from dgate_core.storage.s3_reading import S3RangeReader, S3Version, fetch_object

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

_MIB = 1 << 20
_PART_BYTES = 8 * _MIB
# The classic client, for only its failures are known; multipart from two parts on.
_TRANSFER = TransferConfig(
    multipart_threshold=2 * _PART_BYTES, multipart_chunksize=_PART_BYTES, preferred_transfer_client="classic"
)
_DELETE_AT_ONCE = 1000
_MAKER = "dgate-maker"


@dataclass(frozen=True, slots=True)
class S3Storage:
    """A bucket, or the part of it under a prefix; every write is durable, asked for or not."""

    bucket: str
    """Name of the bucket, which must exist."""
    prefix: str = ""
    """Start of every key, without a slash at either end."""

    @property
    def uri(self) -> str:
        return f"s3://{join_keys(self.bucket, self.prefix)}" if self.prefix else f"s3://{self.bucket}"

    def read_bytes(self, key: str) -> bytes:
        with s3_errors(self.uri_of(key)):
            return fetch_object(self.bucket, self._whole_key(key))

    def write_bytes(self, key: str, data: bytes, *, durable: bool = True) -> None:  # noqa: ARG002
        if len(data) >= _TRANSFER.multipart_threshold:
            self._upload(lambda: io.BytesIO(data), key)
            return
        with s3_errors(self.uri_of(key)):
            s3_client().put_object(
                Bucket=self.bucket, Key=self._whole_key(key), Body=data, ContentType=_content_type(key)
            )

    def create_bytes(self, key: str, data: bytes) -> bool:
        maker = token_hex(16)

        def create() -> bool:
            try:
                s3_client().put_object(
                    Bucket=self.bucket,
                    Key=self._whole_key(key),
                    Body=data,
                    IfNoneMatch="*",
                    Metadata={_MAKER: maker},
                    ContentType=_content_type(key),
                )
            except S3_ERRORS as error:
                made = self._is_made_by(maker, key, data) if may_have_happened(error) else None
                if made is None:
                    raise
                return made
            return True

        with s3_errors(self.uri_of(key)):
            # Two writers at once, or an object that was deleted right after it stood in the way: try again.
            return retry_while(lambda error: error_code(error) in CONFLICT_CODES | EXISTING_CODES, create)

    def delete(self, key: str) -> None:
        with s3_errors(self.uri_of(key)):
            s3_client().delete_object(Bucket=self.bucket, Key=self._whole_key(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        whole_keys = iter([self._whole_key(key) for key in keys])
        with s3_errors(self.uri):
            while batch := list(islice(whole_keys, _DELETE_AT_ONCE)):
                retry_while(lambda error: error_code(error) in RETRIED_CODES, lambda: self._delete_batch(batch))

    def exists(self, key: str) -> bool:
        return self.info(key) is not None

    def info(self, key: str) -> ObjectInfo | None:
        with s3_errors(self.uri_of(key)):
            head = self._head(key)
        return ObjectInfo(key, head["ContentLength"], head["LastModified"].timestamp()) if head else None

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # Some servers walk their folders ("a/b" before "a-b"), so the order is made here.
        with s3_errors(self.uri):
            yield from sorted(self._list_unsorted(check_prefix(prefix)), key=lambda info: info.key)

    def open_read(self, key: str) -> BinaryIO:
        head = self._must_head(key)
        version = S3Version(self.bucket, self._whole_key(key), head["ContentLength"], head["ETag"])
        return io.BufferedReader(S3RangeReader(version))

    def upload_file(self, path: Path, key: str, *, durable: bool = True) -> None:  # noqa: ARG002
        with os_errors(path):
            self._upload(partial(io.FileIO, path), key)

    def download_file(self, key: str, path: Path) -> None:
        def download(file: BinaryIO) -> None:
            file.truncate(0)
            s3_client().download_fileobj(self.bucket, self._whole_key(key), file, Config=_TRANSFER)

        def fill(file: BinaryIO) -> None:
            with s3_errors(self.uri_of(key)):
                retry_while(lambda error: isinstance(error, RetriesExceededError), lambda: download(file))

        self._must_head(key)
        place_file(path, fill, durable=False)

    def sync(self, prefix: str = "") -> None:
        """Do nothing: what S3 has acknowledged is durable."""
        check_prefix(prefix)

    def remove_leftovers(self, prefix: str = "", older_than_seconds: float = 86_400.0) -> int:
        latest = time.time() - older_than_seconds
        folder = join_keys(self.prefix, check_prefix(prefix)).rstrip("/")
        with s3_errors(self.uri):
            client = s3_client()
            pages = client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=f"{folder}/" if folder else ""
            )
            uploads = [upload for page in pages for upload in page.get("Uploads", [])]
            old = [upload for upload in uploads if upload["Initiated"].timestamp() <= latest]
            for upload in old:
                client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        return len(old)

    def child(self, prefix: str) -> S3Storage:
        return S3Storage(self.bucket, self._whole_key(prefix.removesuffix("/")))

    def uri_of(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._whole_key(key)}"

    def local_path(self, key: str) -> Path | None:
        check_key(key)
        return None

    def _whole_key(self, key: str) -> str:
        return join_keys(self.prefix, check_key(key))

    def _list_unsorted(self, prefix: str) -> Iterator[ObjectInfo]:
        start = f"{self.prefix}/" if self.prefix else ""
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start + prefix)
        for entry in (entry for page in pages for entry in page.get("Contents", [])):
            # Consoles make an empty object "folder/" for a folder.
            if not entry["Key"].endswith("/"):
                yield ObjectInfo(entry["Key"].removeprefix(start), entry["Size"], entry["LastModified"].timestamp())

    def _head(self, key: str) -> HeadObjectOutputTypeDef | None:
        try:
            return s3_client().head_object(Bucket=self.bucket, Key=self._whole_key(key))
        except ClientError as error:
            if error_code(error) not in MISSING_CODES:
                raise
        confirm_bucket(s3_client(), self.bucket)
        return None

    def _must_head(self, key: str) -> HeadObjectOutputTypeDef:
        with s3_errors(self.uri_of(key)):
            head = self._head(key)
        if head is None:
            raise missing_object(self.uri_of(key))
        return head

    def _is_made_by(self, maker: str, key: str, data: bytes) -> bool | None:
        """Say whether the object is the one that this maker stored; None if there is none."""
        head = self._head(key)
        if head is None:
            return None
        stored = head["Metadata"].get(_MAKER)
        return stored == maker if stored else fetch_object(self.bucket, self._whole_key(key)) == data

    def _upload(self, open_source: Callable[[], BinaryIO], key: str) -> None:
        def upload() -> None:
            with open_source() as source:
                arguments = {"ContentType": _content_type(key)}
                s3_client().upload_fileobj(source, self.bucket, self._whole_key(key), arguments, Config=_TRANSFER)

        with s3_errors(self.uri_of(key)):
            # An upload that was completed, but whose answer got lost, is not found by the repeated request.
            retry_while(lambda error: error_code(error) == "NoSuchUpload", upload)

    def _delete_batch(self, keys: list[str]) -> None:
        answer = s3_client().delete_objects(
            Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
        )
        for problem in answer.get("Errors", []):
            raise ClientError({"Error": {"Code": problem["Code"], "Message": problem["Message"]}}, "DeleteObjects")


def _content_type(key: str) -> str:
    return mimetypes.guess_type(key)[0] or "application/octet-stream"
