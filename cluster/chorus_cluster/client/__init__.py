"""A client of the gRPC API.

    from chorus_cluster.client import ChorusClient
    from chorus_protos.v1.chat_pb2 import ROLE_USER, ChatCompletionRequest, ChatMessage

    question = ChatMessage(role=ROLE_USER, content="What is Chorus?")
    with ChorusClient("127.0.0.1:9000") as chorus:
        print(chorus.chat(ChatCompletionRequest(model="chorus-demo", messages=[question])).message.content)

Requests and answers are the messages of `chorus_protos.v1`. Errors are those of `chorus_cluster.errors`, with the field
at fault, when to try again, and the request's id in the server's log. It imports no more than gRPC and protobuf.
"""

from chorus_cluster.client.asynchronous import AsyncChorusClient
from chorus_cluster.client.connection import Settings
from chorus_cluster.client.synchronous import ChorusClient

__all__ = ["AsyncChorusClient", "ChorusClient", "Settings"]
