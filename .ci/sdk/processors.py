"""Three azure-eventhub processors that join and leave while telemetry flows: every event is read, none is missed.

  processors.py ENDPOINTS_JSON FOREBAY_PROGRAM
"""
import json, subprocess, sys, threading, time
from azure.eventhub import EventHubConsumerClient

endpoints, program = sys.argv[1], sys.argv[2]
hub = json.load(open(endpoints))
data = endpoints.rsplit("/", 1)[0]
DEVICES, EACH = 8, 400


class Checkpoints:
    """A checkpoint store in memory, with the store's rule of etags."""

    def __init__(self):
        self.lock, self.owners, self.points, self.tags = threading.Lock(), {}, {}, 0

    def list_ownership(self, namespace, hub_name, group, **_):
        with self.lock:
            return [dict(o) for o in self.owners.values()]

    def claim_ownership(self, wanted, **_):
        claimed = []
        with self.lock:
            for owner in wanted:
                known = self.owners.get(owner["partition_id"])
                if known and known.get("etag") != owner.get("etag"):
                    continue
                self.tags += 1
                owner = dict(owner, etag=str(self.tags), last_modified_time=time.time())
                self.owners[owner["partition_id"]] = owner
                claimed.append(dict(owner))
        return claimed

    def update_checkpoint(self, checkpoint, **_):
        with self.lock:
            self.points[checkpoint["partition_id"]] = checkpoint

    def list_checkpoints(self, namespace, hub_name, group, **_):
        with self.lock:
            return [dict(c) for c in self.points.values()]


store, read, lock, by = Checkpoints(), {}, threading.Lock(), {}


class Processor:
    def __init__(self, name):
        self.name = name
        self.client = EventHubConsumerClient.from_connection_string(
            hub["eventhub_connection_string"], "$Default", checkpoint_store=store, load_balancing_interval=1,
            partition_ownership_expiration_interval=6, connection_verify=hub["ca_file"])
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        # In batches: one event at a time, a processor waits 0.2 s for every quiet partition of its own before each.
        self.client.receive_batch(self.events, max_batch_size=20, max_wait_time=1, starting_position="-1")

    def events(self, partition, events):
        with lock:
            for event in events:
                read[partition.partition_id, event.sequence_number] = event.body_as_str()
                by.setdefault(self.name, set()).add(partition.partition_id)
        if events:
            partition.update_checkpoint(events[-1])

    def leave(self):
        self.client.close()
        self.thread.join()


def send(device, first, count):
    lines = "".join(f"{device}/{n}\n" for n in range(first, first + count))
    subprocess.run([program, "send", device, "--lines", "--hub", data], input=lines.encode(), check=True, stdout=subprocess.DEVNULL)


for n in range(DEVICES):
    subprocess.run([program, "device", "create", f"p-{n}", "--hub", data], check=True, stdout=subprocess.DEVNULL)
wanted = {f"p-{n}/{i}" for n in range(DEVICES) for i in range(EACH)}


def telemetry():
    for first in range(0, EACH, 20):
        for n in range(DEVICES):
            send(f"p-{n}", first, 20)


sender = threading.Thread(target=telemetry)
sender.start()
first = Processor("first")
time.sleep(3)
second = Processor("second")
time.sleep(3)
third = Processor("third")
time.sleep(5)
first.leave()
sender.join()
time.sleep(3)
fourth = Processor("fourth")
last, until = 0, time.time() + 30
while time.time() < until and not wanted <= set(read.values()):
    time.sleep(0.5)
    if len(read) > last:
        last, until = len(read), time.time() + 30
missing = wanted - set(read.values())
for processor in (second, third, fourth):
    processor.leave()
numbers = {}
for partition, number in read:
    numbers.setdefault(partition, set()).add(number)
gaps = {p: len(set(range(max(n) + 1)) - n) for p, n in numbers.items() if set(range(max(n) + 1)) - n}
print("partitions by processor:", {name: sorted(parts) for name, parts in by.items()})
if missing or gaps:
    print(f"FAIL eventhub.processors: {len(missing)} of {len(wanted)} events were missed, gaps {gaps}")
    sys.exit(1)
if len(by) < 3:
    print(f"FAIL eventhub.processors: only {sorted(by)} read")
    sys.exit(1)
print(f"PASS eventhub.processors: {len(wanted)} events, none missed")
