// Runs ioredis through a sidecar, a row of the client matrix after the other, and prints a line of JSON for each.
//
//     client.js PORT PREFIX MODULE [OPTIONS]
//
// All keys begin with PREFIX. The client has its default settings, and OPTIONS as JSON. In the last row it goes on until a line comes on
// standard input: until then the test has closed its connections.
const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const { setTimeout: pause } = require("node:timers/promises");

const [port, prefix, library, options = "{}"] = process.argv.slice(2);
// By its path, so that no node_modules of a folder above comes first.
const folder = path.join(process.env.NODE_PATH, library);
const Redis = require(folder);
const client = new Redis(Number(port), JSON.parse(options));
const idle = new Redis(Number(port), JSON.parse(options));
// Connections that break are mended by the client itself; what a command fails with is what counts here.
for (const c of [client, idle]) c.on("error", (error) => console.error(error.message));

const key = (name) => prefix + name;
const equal = assert.deepEqual;
const range = (n) => [...Array(n).keys()];

const rows = {
  async strings() {
    equal(await client.set(key("s"), "1"), "OK");
    equal(await client.get(key("s")), "1");
    equal(await client.incrby(key("s"), 41), 42);
    equal(await client.append(key("s"), "x"), 3);
    equal(await client.set(key("s"), "y", "NX"), null);
    equal(await client.getdel(key("s")), "42x");
    equal(await client.get(key("s")), null);
  },
  async hashes() {
    equal(await client.hset(key("h"), { a: "1", b: "2" }), 2);
    equal({ ...(await client.hgetall(key("h"))) }, { a: "1", b: "2" });
    equal(await client.hincrby(key("h"), "a", 2), 3);
    equal(await client.hmget(key("h"), "a", "none"), ["3", null]);
    equal(await client.hscan(key("h"), 0, "MATCH", "b"), ["0", ["b", "2"]]);
    equal(await client.hdel(key("h"), "a", "b"), 2);
  },
  async "sorted sets"() {
    equal(await client.zadd(key("z"), 1, "a", 2.5, "b", 3, "c"), 3);
    equal((await client.zrange(key("z"), 0, 1, "WITHSCORES")).flat().map(String), ["a", "1", "b", "2.5"]);
    equal(Number(await client.zscore(key("z"), "b")), 2.5);
    equal(Number(await client.zincrby(key("z"), 4, "a")), 5);
    equal(await client.zrevrank(key("z"), "a"), 0);
    equal(await client.zremrangebyscore(key("z"), 2, 3), 2);
    equal(await client.zcard(key("z")), 1);
  },
  async pipelines() {
    const pipeline = client.pipeline();
    for (const i of range(100)) pipeline.set(key(`p${i}`), i);
    for (const i of range(100)) pipeline.get(key(`p${i}`));
    equal(await pipeline.exec(), [...range(100).map(() => [null, "OK"]), ...range(100).map((i) => [null, String(i)])]);
  },
  async "MGET, MSET"() {
    const pairs = new Map(range(50).map((i) => [key(`m${i}`), String(i)]));
    equal(await client.mset(pairs), "OK");
    equal(await client.mget(...pairs.keys(), key("none")), [...pairs.values(), null]);
    equal(await client.exists(...pairs.keys()), 50);
    equal(await client.del(...pairs.keys()), 50);
  },
  async TTLs() {
    await client.set(key("t"), "v", "EX", 100);
    const ttl = await client.ttl(key("t"));
    assert(ttl > 0 && ttl <= 100, `TTL ${ttl}`);
    equal(await client.pexpire(key("t"), 200_000), 1);
    const pttl = await client.pttl(key("t"));
    assert(pttl > 100_000 && pttl <= 200_000, `PTTL ${pttl}`);
    equal(await client.persist(key("t")), 1);
    equal(await client.ttl(key("t")), -1);
    await client.set(key("t"), "v", "PX", 30);
    for (const deadline = Date.now() + 10_000; (await client.get(key("t"))) !== null; await pause(5)) {
      assert(Date.now() < deadline, "a key with a TTL of 30 ms is there after 10 s");
    }
  },
  async scripts() {
    equal(await client.eval("return redis.call('incr', KEYS[1])", 1, key("n")), 1);
    await assert.rejects(client.evalsha("0".repeat(40), 1, key("n")), /NOSCRIPT/);
    // On each shard the first EVALSHA finds no script; the client then runs EVAL by itself.
    client.defineCommand("addBoth", {
      numberOfKeys: 2,
      lua: `redis.call('incrby', KEYS[1], ARGV[1]) return redis.call('incr', KEYS[2]) -- ${prefix}`,
    });
    for (const i of range(20)) {
      const pair = [key(`{${i}}a`), key(`{${i}}b`)];
      equal(await client.addBoth(...pair, 5), 1);
      equal(await client.mget(...pair), ["5", "1"]);
    }
  },
  async "big values"() {
    const value = "0123456789".repeat((5 * 1024 * 1024) / 10);
    equal(await client.set(key("big"), value), "OK");
    assert((await client.get(key("big"))) === value, "another value came back");
    equal(await client.strlen(key("big")), value.length);
    equal(await client.del(key("big")), 1);
  },
  async reconnect() {
    await idle.set(key("idle"), "v");
    let told = false;
    process.stdin.once("data", () => (told = true));
    say({ row: "reconnect", ready: true });
    for (let i = 0, more = 0; more < 50; i++, more += told ? 1 : 0) {
      equal(await client.set(key("r"), i), "OK");
      equal(await client.get(key("r")), String(i));
      await pause(5);
    }
    equal(await idle.get(key("idle")), "v");
  },
};

const say = (what) => console.log(JSON.stringify(what));

(async () => {
  say({ version: JSON.parse(fs.readFileSync(path.join(folder, "package.json"), "utf8")).version });
  for (const [row, run] of Object.entries(rows)) {
    try {
      await run();
      say({ row });
    } catch (error) {
      say({ row, error: String(error) });
    }
  }
  process.exit();
})();
