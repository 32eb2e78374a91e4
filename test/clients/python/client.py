"""Runs redis-py through a sidecar, a row of the client matrix after the other, and prints a line of JSON for each.

    client.py PORT PREFIX [PROTOCOL]

All keys begin with PREFIX. Without PROTOCOL, the client is as applications have it when they set nothing. In the last
row it goes on until a line comes on standard input: until then the test has closed its connections.
"""

import hashlib
import json
import sys
import threading
import time

import redis

port, prefix = int(sys.argv[1]), sys.argv[2]
options = {"protocol": int(sys.argv[3])} if len(sys.argv) > 3 else {}
client = redis.Redis(port=port, **options)
idle = redis.Redis(port=port, **options)


def key(name):
    return prefix + name


def equal(got, want):
    if got != want:
        raise AssertionError(f"got {got!r:.200}, want {want!r:.200}")


def strings():
    equal(client.set(key("s"), "1"), True)
    equal(client.get(key("s")), b"1")
    equal(client.incrby(key("s"), 41), 42)
    equal(client.append(key("s"), "x"), 3)
    equal(client.set(key("s"), "y", nx=True), None)
    equal(client.getdel(key("s")), b"42x")
    equal(client.get(key("s")), None)


def hashes():
    equal(client.hset(key("h"), mapping={"a": "1", "b": "2"}), 2)
    equal(client.hgetall(key("h")), {b"a": b"1", b"b": b"2"})
    equal(client.hincrby(key("h"), "a", 2), 3)
    equal(client.hmget(key("h"), "a", "none"), [b"3", None])
    equal(list(client.hscan_iter(key("h"), match="b")), [(b"b", b"2")])
    equal(client.hdel(key("h"), "a", "b"), 2)


def sorted_sets():
    equal(client.zadd(key("z"), {"a": 1, "b": 2.5, "c": 3}), 3)
    got = client.zrange(key("z"), 0, 1, withscores=True)
    equal([(member, score) for member, score in got], [(b"a", 1.0), (b"b", 2.5)])
    equal(client.zscore(key("z"), "b"), 2.5)
    equal(client.zincrby(key("z"), 4, "a"), 5.0)
    equal(client.zrevrank(key("z"), "a"), 0)
    equal(client.zremrangebyscore(key("z"), 2, 3), 2)
    equal(client.zcard(key("z")), 1)


def pipelines():
    # Without transaction=False it would be a MULTI, which the mesh refuses.
    pipeline = client.pipeline(transaction=False)
    for i in range(100):
        pipeline.set(key(f"p{i}"), i)
    for i in range(100):
        pipeline.get(key(f"p{i}"))
    equal(pipeline.execute(), [True] * 100 + [b"%d" % i for i in range(100)])


def many():
    pairs = {key(f"m{i}"): b"%d" % i for i in range(50)}
    equal(client.mset(pairs), True)
    equal(client.mget(*pairs, key("none")), [*pairs.values(), None])
    equal(client.exists(*pairs), 50)
    equal(client.delete(*pairs), 50)


def ttls():
    client.set(key("t"), "v", ex=100)
    equal(0 < client.ttl(key("t")) <= 100, True)
    equal(client.pexpire(key("t"), 200_000), True)
    equal(100_000 < client.pttl(key("t")) <= 200_000, True)
    equal(client.persist(key("t")), True)
    equal(client.ttl(key("t")), -1)
    client.set(key("t"), "v", px=30)
    deadline = time.monotonic() + 10
    while client.get(key("t")) is not None:
        equal(time.monotonic() < deadline, True)
        time.sleep(0.005)


def scripts():
    script = f"redis.call('incrby', KEYS[1], ARGV[1]) return redis.call('incr', KEYS[2]) -- {prefix}"
    equal(client.eval("return redis.call('incr', KEYS[1])", 1, key("n")), 1)
    # register_script would run SCRIPT LOAD after NOSCRIPT, which the mesh refuses: EVAL loads it where the keys are.
    sha, missed = hashlib.sha1(script.encode()).hexdigest(), 0
    for i in range(20):
        pair = (key(f"{{{i}}}a"), key(f"{{{i}}}b"))
        try:
            got = client.evalsha(sha, 2, *pair, 5)
        except redis.exceptions.NoScriptError:
            missed += 1
            got = client.eval(script, 2, *pair, 5)
        equal(got, 1)
        equal(client.mget(*pair), [b"5", b"1"])
    equal(missed, 2)  # once on each shard


def big_values():
    value = b"0123456789" * (5 * 1024 * 1024 // 10)
    equal(client.set(key("big"), value), True)
    equal(client.get(key("big")) == value, True)
    equal(client.strlen(key("big")), len(value))
    equal(client.delete(key("big")), 1)


def reconnect():
    idle.set(key("idle"), "v")
    told = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), told.set()), daemon=True).start()
    say({"row": "reconnect", "ready": True})
    i = more = 0
    while more < 50:
        equal(client.set(key("r"), i), True)
        equal(client.get(key("r")), b"%d" % i)
        i, more = i + 1, more + told.is_set()
        time.sleep(0.005)
    equal(idle.get(key("idle")), b"v")


def say(what):
    print(json.dumps(what), flush=True)


say({"version": redis.__version__})
for name, run in {
    "strings": strings, "hashes": hashes, "sorted sets": sorted_sets, "pipelines": pipelines, "MGET, MSET": many,
    "TTLs": ttls, "scripts": scripts, "big values": big_values, "reconnect": reconnect,
}.items():
    try:
        run()
        say({"row": name})
    except Exception as error:
        say({"row": name, "error": f"{type(error).__name__}: {error}"})
