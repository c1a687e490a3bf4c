#!/usr/bin/env python3
"""A client of a replicator cluster in Python, written from ../replicator/v1/client.proto alone.

It shows all that a client in another language has to do: open a session, number its requests, repeat an unanswered one under its
number, read, and follow events from node to node. The cluster must run the counter module (statemachine/examples/counter):

    pip install grpcio grpcio-tools
    proto/python/client.py 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103

Kill nodes while it runs: as long as a majority is up, it goes on, counts nothing twice, and misses no event.
"""

import argparse
import pathlib
import sys
import threading
import time

import grpc

# Compiles the .proto file on the fly; a bigger program would generate its code once, with `python -m grpc_tools.protoc`.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
messages, services = grpc.protos_and_services("replicator/v1/client.proto")

ATTEMPT_SECONDS = 2  # for one node to answer, then another one is asked
DEADLINE_SECONDS = 30  # for any node to answer, then the call fails
PAUSE_SECONDS = 0.05  # between two attempts
# A stopped machine doesn't close its connections; these pings find it out.
OPTIONS = [("grpc.keepalive_time_ms", 3000), ("grpc.keepalive_timeout_ms", 3000)]
# No answer, none in time, or a node that has too much to do; the last three are how a broken connection can look, too.
# All else is an answer: a refusal, or a trap of the module. A repeat has the same number, so it harms nothing.
NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)


class Cluster:
    """The nodes of a cluster. Any of them answers any call."""

    def __init__(self, endpoints):
        self.endpoints = endpoints
        self.stubs = [services.ReplicatorServiceStub(grpc.insecure_channel(e, OPTIONS)) for e in endpoints]
        self.at = 0  # the node that is asked

    def node(self):
        return self.endpoints[self.at], self.stubs[self.at]

    def move(self, endpoint):
        """Goes on to the next node, unless another thread has done so already."""
        if self.endpoints[self.at] == endpoint:
            self.at = (self.at + 1) % len(self.endpoints)
        time.sleep(PAUSE_SECONDS)

    def call(self, method, request):
        """Sends the same request to one node after another until one answers."""
        give_up = time.monotonic() + DEADLINE_SECONDS
        while True:
            endpoint, stub = self.node()
            try:
                return getattr(stub, method)(request, timeout=ATTEMPT_SECONDS)
            except grpc.RpcError as error:
                if error.code() not in NO_ANSWER or time.monotonic() > give_up:
                    raise
            self.move(endpoint)

    def query(self, text):
        """Reads, and sees every write that was acknowledged before. Changes nothing, so it may be repeated freely."""
        request = messages.QueryRequest(request=text.encode(), consistency=messages.CONSISTENCY_LINEARIZABLE)
        return self.call("Query", request).response.decode()

    def events(self, topic, cursor=None):
        """Yields what is pushed to a topic: first ("listening", endpoint) for each node, then ("event", push)."""
        while True:
            endpoint, stub = self.node()
            # After the last event seen, at whatever node. Without a cursor: from now on.
            request = messages.SubscribeRequest(topics=[topic], after=cursor)
            listening = False
            try:
                for message in stub.Subscribe(request):
                    item = message.WhichOneof("item")
                    if item == "progress":
                        # Nothing is left up to here; the first message of a stream says where it begins.
                        cursor = message.progress
                        if not listening:
                            listening = True
                            yield "listening", endpoint
                    elif item == "push":
                        cursor = message.push.cursor
                        yield "event", message.push
            except grpc.RpcError as error:
                if error.code() not in NO_ANSWER:
                    raise  # OUT_OF_RANGE: the events after the cursor are no longer kept
            self.move(endpoint)


class Session:
    """Requests numbered 1, 2, 3, ...: each is executed exactly once."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.id = cluster.call("OpenSession", messages.OpenSessionRequest()).session_id
        self.sequence = 0

    def execute(self, text):
        self.sequence += 1
        request = messages.ExecuteRequest(
            session_id=self.id,
            sequence=self.sequence,
            acked_below=self.sequence,  # every outcome before this one has come, so the cluster may forget it
            request=text.encode(),
        )
        # A repeat is the very same message: if the first one was executed, its stored outcome is the answer.
        return self.cluster.call("Execute", request).response.decode()

    def close(self):
        self.cluster.call("CloseSession", messages.CloseSessionRequest(session_id=self.id))


def add(cluster, name, times, pause):
    """Adds 1, again and again. A lost request would repeat an answer, one that was executed twice would leave one out."""
    session = Session(cluster)
    value = int(cluster.query(f"get {name}"))
    for _ in range(times):
        value += 1
        answer = session.execute(f"add {name} 1")
        if answer != str(value):
            sys.exit(f"request {session.sequence} was answered {answer}, and not {value}")
        time.sleep(pause)
    session.close()


def main():
    parser = argparse.ArgumentParser(description="Counts, and listens to itself counting.")
    parser.add_argument("endpoints", help="client addresses of the nodes, separated by commas")
    parser.add_argument("--name", default="apples", help="the counter")
    parser.add_argument("--times", type=int, default=1000, help="how often to add 1")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between two additions")
    arguments = parser.parse_args()
    endpoints = arguments.endpoints.split(",")

    listening = threading.Event()
    seen = []

    def listen():
        for what, item in Cluster(endpoints).events("counters"):
            if what == "listening":
                print(f"listening at {item}", flush=True)
                listening.set()
                continue
            cursor, text = item.cursor, item.payload.decode()
            print(f"event {cursor.log_index} {cursor.ordinal} {text}", flush=True)
            if text.startswith(f"{arguments.name} "):
                seen.append(text)
            if len(seen) == arguments.times:
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    if not listening.wait(DEADLINE_SECONDS):
        sys.exit("no node could be listened to")
    cluster = Cluster(endpoints[::-1])  # at another node than the listener, for as long as both are up
    add(cluster, arguments.name, arguments.times, arguments.pause)
    listener.join(DEADLINE_SECONDS)
    print(f"{arguments.name} is {cluster.query('get ' + arguments.name)} after {len(seen)} events", flush=True)
    if len(seen) < arguments.times:
        sys.exit("events are missing")


if __name__ == "__main__":
    main()
