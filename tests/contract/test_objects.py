"""What we rely on of an S3 server, shown on every one we run on."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from s3_servers import Nodes, Variant

from app.errors import Unavailable
from app.store.artifacts import ArtifactStore, artifact_key
from app.store.lifecycle import check_lifecycle, init_storage, wanted_rules
from app.store.object_types import (
    ConditionalWritesMissing,
    ConditionLost,
    NotSupported,
    ObjectMissing,
    ObjectTooLarge,
    RangeNotSatisfiable,
    RequestRefused,
)
from app.store.object_writer import ObjectWriter
from app.store.objects import COPY_WHOLE_BYTES, open_object_store, require_conditional_writes
from app.store.upload_buffers import PART_BYTES

MIB = 1024 * 1024


async def _read(nodes: Nodes, key: str) -> bytes:
    async with nodes.store.open(key) as stream:
        return b"".join([chunk async for chunk in stream.chunks])


@pytest.mark.parametrize(
    "size", [0, 1, 65_536, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 12 * MIB]
)
async def test_stream_of_any_length_is_stored_whole(nodes: Nodes, size: int) -> None:
    data = os.urandom(size)
    writer = ObjectWriter(nodes.store, "k")
    for start in range(0, size, 100_000):
        await writer.write(data[start : start + 100_000])
    written = await writer.finish()
    assert (written.bytes, written.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert await _read(nodes, "k") == data
    assert await nodes.open_uploads() == []
    assert ("create_multipart_upload" in nodes.store.calls) == (size > PART_BYTES)


async def test_chunk_larger_than_a_part_is_split(nodes: Nodes) -> None:
    data = os.urandom(2 * PART_BYTES + 3)
    writer = ObjectWriter(nodes.store, "k")
    await writer.write(data)
    await writer.finish()
    assert await _read(nodes, "k") == data


@pytest.mark.parametrize("operation", ["create_multipart_upload", "upload_part", "put_object"])
async def test_part_that_fails_ends_the_writer_and_abort_leaves_nothing(
    nodes: Nodes, operation: str
) -> None:
    store = nodes.another().store
    store.fault = lambda called, params: "refuse" if called == operation else None
    writer = ObjectWriter(store, "k")
    with pytest.raises(Unavailable):
        for _ in range(20 if operation != "put_object" else 1):
            await writer.write(bytes(MIB))
        await writer.finish()
    await writer.abort()
    assert await nodes.keys() == []
    assert await nodes.open_uploads() == []
    assert store.buffers.free_bytes == store.buffers.total_bytes


async def test_completion_whose_answer_is_lost_is_found_to_stand(nodes: Nodes) -> None:
    writer = ObjectWriter(nodes.store, "k")
    await writer.write(bytes(PART_BYTES + 1))
    store: Any = nodes.store

    class Driver:
        """Completes, then claims that the upload is unknown, as a second attempt may be told."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store.client, name)

        async def complete_multipart_upload(self, **params: Any) -> Any:
            await store.client.complete_multipart_upload(**params)
            await store.client.abort_multipart_upload(
                **{name: params[name] for name in ("Bucket", "Key")}, UploadId="no-such-upload"
            )

    store._client = Driver()
    await writer.finish()
    assert await nodes.keys() == ["k"]


async def test_uploads_share_the_budget_and_none_starves(nodes: Nodes) -> None:
    store = nodes.another(upload_buffer_bytes=2 * PART_BYTES).store
    least = store.buffers.free_bytes

    async def upload(number: int) -> None:
        nonlocal least
        writer = ObjectWriter(store, f"k{number}")
        for _ in range(11):
            await writer.write(bytes(MIB))
            least = min(least, store.buffers.free_bytes)
            await asyncio.sleep(0.001)
        await writer.finish()

    async with asyncio.timeout(60):
        await asyncio.gather(*(upload(n) for n in range(6)))
    assert least == 0
    assert store.buffers.free_bytes == 2 * PART_BYTES
    assert len(await nodes.keys()) == 6


async def test_condition_lets_one_of_many_writers_through(nodes: Nodes) -> None:
    async def create(n: int) -> bool:
        try:
            await nodes.store.put("k", b"%d" % n, create_only=True)
        except ConditionLost:
            return False
        return True

    assert sum(await asyncio.gather(*(create(n) for n in range(8)))) == 1
    _, info = await nodes.store.get("k", max_bytes=10)

    async def replace(n: int) -> bool:
        try:
            await nodes.store.put("k", b"new %d" % n, if_match=info.etag)
        except ConditionLost:
            return False
        return True

    # A loser may see a 500; but never do two see success.
    assert sum(await asyncio.gather(*(replace(n) for n in range(8)))) <= 1
    body, after = await nodes.store.get("k", max_bytes=10)
    assert body.startswith(b"new")
    assert after.etag != info.etag
    await nodes.store.delete(["k"])
    with pytest.raises(ConditionLost):
        await nodes.store.put("k", b"late", if_match=after.etag)
    assert await nodes.keys() == []


async def test_probe_finds_out_whether_conditions_hold(nodes: Nodes, variant: Variant) -> None:
    found = await nodes.store.probe_conditional_writes()
    assert found.supported
    assert found.etag_form == ("stripped" if variant.server.name == "ceph" else "quoted")
    nodes.store.ignores_conditions = True
    assert not (await nodes.store.probe_conditional_writes()).supported
    assert await nodes.keys() == []


async def test_server_without_conditions_is_refused_unless_fenced(nodes: Nodes) -> None:
    nodes.store.ignores_conditions = True
    with pytest.raises(ConditionalWritesMissing, match="STORAGE_FENCE"):
        await require_conditional_writes(
            nodes.store, nodes.variant.server.settings(storage_fence="none")
        )
    await require_conditional_writes(
        nodes.store, nodes.variant.server.settings(storage_fence="postgres")
    )


async def test_unanswered_condition_is_reported_as_uncertain(nodes: Nodes) -> None:
    nodes.store.fault = lambda operation, params: "lose"
    with pytest.raises(ConditionLost) as lost:
        await nodes.store.put("k", b"1", create_only=True)
    assert not lost.value.certain
    nodes.store.fault = lambda operation, params: None
    assert await nodes.keys() == ["k"]


async def test_small_read_is_bounded_and_tells_the_servers_time(nodes: Nodes) -> None:
    await nodes.store.put("k", b"12345")
    body, info = await nodes.store.get("k", max_bytes=5)
    assert body == b"12345"
    assert info.bytes == 5
    assert abs(info.served_at - info.last_modified) < timedelta(seconds=5)
    with pytest.raises(ObjectTooLarge):
        await nodes.store.get("k", max_bytes=4)
    with pytest.raises(ObjectMissing) as missing:
        await nodes.store.get("none", max_bytes=4)
    assert abs(missing.value.served_at - info.served_at) < timedelta(seconds=5)
    assert await nodes.store.find("none") is None


async def test_range_and_early_exit(nodes: Nodes) -> None:
    data = os.urandom(3 * MIB)
    writer = ObjectWriter(nodes.store, "k")
    await writer.write(data)
    await writer.finish()
    async with nodes.store.open("k", offset=5, length=10) as stream:
        assert (stream.total_bytes, stream.range_bytes) == (len(data), 10)
        assert b"".join([chunk async for chunk in stream.chunks]) == data[5:15]
    async with nodes.store.open("k", offset=len(data) - 3) as stream:
        assert b"".join([chunk async for chunk in stream.chunks]) == data[-3:]
    with pytest.raises(RangeNotSatisfiable):
        async with nodes.store.open("k", offset=len(data)):
            pass
    # More early exits than the pool has connections: each must come back.
    store = nodes.another(s3_max_connections=64).store
    for _ in range(80):
        async with store.open("k") as stream:
            async for _chunk in stream.chunks:
                break


async def test_listing_pages_in_order_and_resumes(nodes: Nodes) -> None:
    names = [f"p/{n:02}/å b+&" for n in range(7)]
    for name in names:
        await nodes.store.put(name, b"")
    pages = [page async for page in nodes.store.list_pages("p/", page_keys=3)]
    assert [[info.key for info in page] for page in pages] == [names[:3], names[3:6], names[6:]]
    rest = [info.key async for info in nodes.store.list_objects("p/", start_after=names[4])]
    assert rest == names[5:]
    assert await nodes.store.delete([*names, "p/none"]) == 8
    assert await nodes.keys() == []


async def test_delete_reports_errors_inside_an_answer_and_a_missing_bucket(nodes: Nodes) -> None:
    store: Any = nodes.another().store

    class Driver:
        def __getattr__(self, name: str) -> Any:
            return getattr(nodes.variant.client, name)

        async def delete_objects(self, **params: Any) -> Any:
            answer = await nodes.variant.client.delete_objects(**params)
            return answer | {"Errors": [{"Key": "b", "Code": "AccessDenied"}]}

    store._client = Driver()
    with pytest.raises(Unavailable):
        await store.delete(["a", "b"])
    gone: Any = nodes.another().store
    gone._bucket = "no-such-bucket-here"
    with pytest.raises(Unavailable):
        await gone.delete(["a"])
    with pytest.raises(Unavailable):
        await gone.get("a", max_bytes=1)


@pytest.mark.parametrize("size", [0, 4, COPY_WHOLE_BYTES, COPY_WHOLE_BYTES + 1, 6 * 1024 * 1024])
async def test_copy_onto_itself_renews_age_and_keeps_bytes(nodes: Nodes, size: int) -> None:
    same = os.urandom(size)
    await nodes.store.put("k", same, content_type="text/plain")
    (before,) = [info.last_modified async for info in nodes.store.list_objects("k")]
    await asyncio.sleep(0.02)
    await nodes.store.copy_onto_itself("k", {"context": "a%20b"})
    (after,) = [info.last_modified async for info in nodes.store.list_objects("k")]
    assert after > before
    found = await nodes.store.find("k")
    assert found is not None
    assert found.metadata == {"context": "a%20b"}
    assert await _read(nodes, "k") == same
    assert await nodes.open_uploads() == []
    with pytest.raises(ObjectMissing):
        await nodes.store.copy_onto_itself("none", {})


async def test_copy_onto_itself_that_fails_leaves_the_object_and_nothing_else(nodes: Nodes) -> None:
    same = os.urandom(COPY_WHOLE_BYTES + 1)
    await nodes.store.put("k", same)
    store: Any = nodes.another().store
    store.fault = lambda operation, params: "refuse" if operation == "upload_part_copy" else None
    with pytest.raises(Unavailable):
        await store.copy_onto_itself("k", {})
    assert await _read(nodes, "k") == same
    assert await nodes.open_uploads() == []


async def test_server_that_is_down_is_unavailable_in_bounded_time(variant: Variant) -> None:
    settings = variant.server.settings(s3_endpoint_url="http://127.0.0.1:9", s3_timeout_seconds=2)
    async with open_object_store(settings) as store, asyncio.timeout(20):
        with pytest.raises(Unavailable) as down:
            await store.find("k")
        assert down.value.details == {"dependency": "s3"}


async def test_server_that_hangs_is_unavailable_in_bounded_time(variant: Variant) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = variant.server.settings(
        s3_endpoint_url=f"http://127.0.0.1:{port}", s3_timeout_seconds=1
    )
    async with open_object_store(settings) as store:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(ConditionLost) as lost:
            await store.put("k", b"1", create_only=True)
        assert not lost.value.certain
        assert loop.time() - started < 3  # One attempt: a condition is never sent twice.
    server.close()
    await server.wait_closed()


async def test_wrong_keys_are_unavailable(variant: Variant) -> None:
    settings = variant.server.settings(s3_access_key="nobody", s3_secret_key="wrong")
    async with open_object_store(settings) as store:
        with pytest.raises(Unavailable):
            await store.put("k", b"1")


# --- Artifacts --------------------------------------------------------------------------------


async def test_artifacts_are_put_read_by_range_and_deleted(nodes: Nodes, tmp_path: Path) -> None:
    artifacts = ArtifactStore(nodes.store)
    run_id, other = uuid4(), uuid4()
    path = tmp_path / "ut.pdf"
    path.write_bytes(b"0123456789")
    written = await artifacts.put_path(run_id, 0, path)
    assert (written.bytes, written.sha256) == (10, hashlib.sha256(b"0123456789").hexdigest())
    await artifacts.put_path(other, 0, path)
    async with artifacts.open(run_id, 0, offset=2, length=3) as stream:
        assert b"".join([chunk async for chunk in stream.chunks]) == b"234"
    assert (await artifacts.delete_all(run_id)).artifacts == 1
    assert await nodes.keys() == [artifact_key(other, 0)]
    with pytest.raises(ObjectMissing):
        async with artifacts.open(run_id, 0):
            pass


async def test_artifact_link_or_pipe_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    artifacts = ArtifactStore(nodes.store)
    secret = tmp_path / "secret"
    secret.write_text("x")
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "none"):
        with pytest.raises(OSError):
            await artifacts.put_path(uuid4(), 0, tmp_path / name)
    assert await nodes.keys() == []


async def test_artifact_that_breaks_off_leaves_nothing(nodes: Nodes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield bytes(MIB)
        raise RuntimeError("the sandbox is gone")

    with pytest.raises(RuntimeError):
        await ArtifactStore(nodes.store).put_stream(uuid4(), 0, chunks())
    assert await nodes.keys() == []
    assert await nodes.open_uploads() == []


# --- Lifecycle --------------------------------------------------------------------------------


async def test_storage_init_can_be_repeated_and_sees_drift(nodes: Nodes) -> None:
    settings = nodes.variant.settings(nodes.bucket)
    store = nodes.another().store
    store.ignores_conditions = False
    assert (await check_lifecycle(store, settings)).state == "drifted"
    first = await init_storage(store, settings)
    assert (first.created, first.conditional_writes) == (False, True)
    assert first.lifecycle.state == "complete"
    writes = store.calls.count("put_bucket_lifecycle_configuration")
    assert (await init_storage(store, settings)).lifecycle.state == "complete"
    assert store.calls.count("put_bucket_lifecycle_configuration") == writes
    theirs = {
        "ID": "somebody-elses",
        "Status": "Enabled",
        "Filter": {"Prefix": "logs/"},
        "Expiration": {"Days": 3},
    }
    changed = wanted_rules(nodes.variant.settings(nodes.bucket, lifecycle_days=90))
    await store.put_lifecycle_rules([theirs, *changed])
    report = await check_lifecycle(store, settings)
    assert report.state == "drifted"
    assert report.differences == ("skriptoteket-sessions", "skriptoteket-workspaces")
    assert (await init_storage(store, settings)).lifecycle.state == "complete"
    assert "somebody-elses" in {rule["ID"] for rule in await store.lifecycle_rules()}


async def test_server_without_lifecycle_or_abort_rule_is_told_from_a_broken_one(
    nodes: Nodes,
) -> None:
    settings = nodes.variant.settings(nodes.bucket)
    store: Any = nodes.another().store

    async def no_rules() -> Any:
        raise NotSupported("get_bucket_lifecycle_configuration")

    original = store.put_lifecycle_rules

    async def no_abort(rules: Any) -> None:
        if any("AbortIncompleteMultipartUpload" in rule for rule in rules):
            raise RequestRefused("put_bucket_lifecycle_configuration", 400, "MalformedXML")
        await original(rules)

    store.put_lifecycle_rules = no_abort
    assert (await init_storage(store, settings)).lifecycle.state == "without_abort"
    store.lifecycle_rules = no_rules
    assert (await init_storage(store, settings)).lifecycle.state == "unsupported"
    broken = nodes.another().store
    broken.fault = lambda operation, params: "refuse"
    with pytest.raises(Unavailable):
        await check_lifecycle(broken, settings)
