"""The methods of `chorus.v1.ResponsesService`, named as Ray Serve's gRPC ingress calls them."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from chorus_cluster.gateway.grpc.call import Call, GrpcContext, GrpcMethods, Reading
from chorus_cluster.gateway.grpc.responses.models import event_to_pb, page_to_pb, response_to_pb
from chorus_cluster.gateway.grpc.responses.names import ORDERS, word
from chorus_cluster.gateway.grpc.responses.request import body_from_pb
from chorus_cluster.gateway.grpc.service import Malformed
from chorus_cluster.gateway.responses.listing import DEFAULT_LISTED, MAX_LISTED, check_number, page_of
from chorus_cluster.gateway.responses.parse import parse_response_body
from chorus_cluster.gateway.responses.request import ResponseRequest
from chorus_cluster.gateway.responses.service import MAX_SEQUENCE_NUMBER
from chorus_cluster.gateway.responses.writer import read_event
from chorus_cluster.gateway.stream import ChatStream
from chorus_protos.v1 import responses_pb2 as pb

_SERVICE = "/chorus.v1.ResponsesService/"


class GrpcResponsesMethods(GrpcMethods):
    async def CreateResponse(
        self, request: pb.CreateResponseRequest | Malformed, grpc_context: GrpcContext
    ) -> pb.Response:
        async def create(call: Call) -> pb.Response:
            asked = self._read(request, call, stream=False)
            if asked[0].background:
                return response_to_pb((await self._responses.start_in_background(*asked)).body)
            return response_to_pb(await self._responses.create(*asked))

        return await self._unary(_SERVICE + "CreateResponse", grpc_context, pb.Response, create)

    async def StreamResponse(
        self, request: pb.CreateResponseRequest | Malformed, grpc_context: GrpcContext
    ) -> AsyncIterator[pb.ResponseEvent]:
        with self._streaming(_SERVICE + "StreamResponse", grpc_context) as call:
            asked = self._read(request, call, stream=True)
            if asked[0].background:
                stored = await self._responses.start_in_background(*asked)
                sent = self._sent(self._responses.follow(stored, -1))
            else:
                started = await self._responses.start(*asked)
                sent = self._sent(self._responses.events(started), [started.stream])
            async with aclosing(sent) as events:
                async for event in events:
                    yield event

    async def GetResponse(self, request: pb.GetResponseRequest | Malformed, grpc_context: GrpcContext) -> pb.Response:
        async def get(call: Call) -> pb.Response:
            asked, owner = self._admit(request, call)
            return response_to_pb((await self._responses.get(asked.response_id, owner)).body)

        return await self._unary(_SERVICE + "GetResponse", grpc_context, pb.Response, get)

    async def StreamStoredResponse(
        self, request: pb.StreamStoredResponseRequest | Malformed, grpc_context: GrpcContext
    ) -> AsyncIterator[pb.ResponseEvent]:
        with self._streaming(_SERVICE + "StreamStoredResponse", grpc_context) as call:
            asked, owner = self._admit(request, call)
            stored = await self._responses.get(asked.response_id, owner)
            after = -1
            if asked.HasField("starting_after"):
                after = check_number("starting_after", asked.starting_after, 0, MAX_SEQUENCE_NUMBER)
            async with aclosing(self._sent(self._responses.follow(stored, after))) as events:
                async for event in events:
                    yield event

    async def DeleteResponse(
        self, request: pb.DeleteResponseRequest | Malformed, grpc_context: GrpcContext
    ) -> pb.DeletedResponse:
        async def delete(call: Call) -> pb.DeletedResponse:
            asked, owner = self._admit(request, call)
            await self._responses.delete(asked.response_id, owner)
            return pb.DeletedResponse(id=asked.response_id, deleted=True)

        return await self._unary(_SERVICE + "DeleteResponse", grpc_context, pb.DeletedResponse, delete)

    async def CancelResponse(
        self, request: pb.CancelResponseRequest | Malformed, grpc_context: GrpcContext
    ) -> pb.Response:
        async def cancel(call: Call) -> pb.Response:
            asked, owner = self._admit(request, call)
            return response_to_pb(await self._responses.cancel(asked.response_id, owner))

        return await self._unary(_SERVICE + "CancelResponse", grpc_context, pb.Response, cancel)

    async def ListInputItems(
        self, request: pb.ListInputItemsRequest | Malformed, grpc_context: GrpcContext
    ) -> pb.InputItemList:
        async def list_items(call: Call) -> pb.InputItemList:
            asked, owner = self._admit(request, call)
            items = await self._responses.history.input_items(asked.response_id, owner)
            limit = asked.limit if asked.HasField("limit") else DEFAULT_LISTED
            check_number("limit", limit, 1, MAX_LISTED)
            order = word(ORDERS, asked.order)
            return page_to_pb(page_of(items, limit, "desc" if order is None else order, asked.after or None))

        return await self._unary(_SERVICE + "ListInputItems", grpc_context, pb.InputItemList, list_items)

    def _read(
        self, request: pb.CreateResponseRequest | Malformed, call: Call, *, stream: bool
    ) -> tuple[ResponseRequest, str, float | None]:
        """What is asked for, whose it is, and by when it must be there."""
        asked, owner = self._admit(request, call)
        return parse_response_body(body_from_pb(asked, stream=stream)), owner, call.deadline_unix_s()

    async def _sent(
        self, pieces: AsyncGenerator[list[str], None], streams: Sequence[ChatStream] = ()
    ) -> AsyncGenerator[pb.ResponseEvent, None]:
        """Events as they are written and kept, in their own form. `streams`: end with it."""
        async with Reading(streams, self._client_timeout_s) as reading, aclosing(pieces):
            async for events in pieces:
                for event in events:
                    reading.begin()
                    yield event_to_pb(read_event(event))
                    reading.end()
