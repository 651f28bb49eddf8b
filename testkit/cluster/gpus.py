"""Tests of GPUs as configuration: their settings in cluster.yaml, over a reboot and back. The GPUs are simulated by the fake NVML."""

import json

from bench import Bench, assert_converged, outcomes, test
from suite import eventually

PROGRAM, FILE, RECORD = "/usr/local/libexec/slipway", "/var/lib/slipway/gpu-settings.yaml", "/var/lib/slipway/gpu-settings.json"
UNIT = "slipway-gpu-settings.service"


@test
def gpu_settings_are_applied_kept_over_a_reboot_and_restored(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        host, before = bench.hosts["gpu1"], bench.file.read_text()
        bench.apply("--no-smoke")

        def write(settings):
            bench.file.write_text(before.replace("devicePlugin: nvidia", f"devicePlugin: nvidia, settings: {settings}"))

        def driver(setting, gpu=0):
            """A setting as the simulated driver has it; None if it is the initial one."""
            return json.loads(host.ssh(f"cat {host.GPU_STATE} 2>/dev/null || echo '[{{}}, {{}}]'").stdout)[gpu].get("settings", {}).get(setting)

        write("[{gpus: all, powerLimit: 80%}, {gpus: 0, lockedClocks: {graphics: 1200}}]")
        plan = [c["resource"] for c in bench.plan(status=3)["gpu1"]["changes"]]
        assert plan == [f"gpu/settings{part}" for part in ("-program", "-file", "", "-unit", "-boot")], plan
        bench.apply("--no-smoke")
        assert_converged(bench)
        assert outcomes(bench.apply("--no-smoke")) == {"unchanged"}
        assert (driver("power_limit"), driver("power_limit", 1), driver("graphics_clocks")) == (560_000, 560_000, [1200, 1200])
        # A change by somebody else is found and undone.
        host.ssh(f"{PROGRAM} gpu settings apply --gpus 1 --power-limit 300W --record /tmp/record.json --yes")
        assert [c["resource"] for c in bench.plan(status=3)["gpu1"]["changes"]] == ["gpu/settings"]
        bench.apply("--no-smoke")
        assert driver("power_limit", 1) == 560_000
        # The driver forgets its settings when the machine reboots, and the unit applies them.
        boot = host.ssh("cat /proc/sys/kernel/random/boot_id").stdout
        host.ssh("systemctl reboot", check=False)
        booted = lambda: host.ssh("cat /proc/sys/kernel/random/boot_id", check=False).stdout not in ("", boot)
        eventually(booted, timeout=60, message="the machine is back")
        eventually(lambda: driver("graphics_clocks") == [1200, 1200], timeout=60, message="the unit applies the settings")
        eventually(lambda: host.ssh(f"systemctl is-active {UNIT}", check=False).stdout == "active\n", timeout=30, message="the unit has finished")
        assert_converged(bench)
        # A value that the card does not allow changes nothing.
        write("[{gpus: all, powerLimit: 2000W}]")
        reason = bench.apply("--no-smoke", status=1)["gpu1/base"]["reason"]
        assert "not 2000 W" in reason and driver("power_limit") == 560_000, reason
        # A rollback, and settings that are no longer in the file, restore the earlier values.
        write("[{gpus: all, persistence: true}]")
        bench.apply("--no-smoke")
        assert (driver("power_limit"), driver("graphics_clocks")) == (700_000, None)
        bench.file.write_text(before)
        assert [c["resource"] for c in bench.plan(status=3)["gpu1"]["changes"]] == ["gpu/settings"]
        bench.apply("--no-smoke")
        assert_converged(bench)
        left = host.ssh(f"ls {PROGRAM} {FILE}* {RECORD} /etc/systemd/system/{UNIT}", check=False).stdout
        assert not left and not driver("persistence"), left
        write("[{gpus: all, powerLimit: 300W}]")
        bench.apply("--no-smoke")
        assert driver("power_limit") == 300_000
        bench.run("rollback", "--yes", "--hosts", "gpu1")
        assert driver("power_limit") == 700_000 and not host.ssh(f"ls {PROGRAM} {FILE} {RECORD}", check=False).stdout


@test
def one_place_of_the_file_sets_the_gpus(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        text = bench.file.read_text().replace("devicePlugin: nvidia", "devicePlugin: slipway, settings: [{gpus: all, powerLimit: 80%}]")
        bench.file.write_text(text + "  platform: {image: 'slipway:1', values: {node: {gpuSettings: {default: x}}}}\n")
        bench.run("plan", status=1)
        assert "spec.gpu.settings and spec.platform.values.node.gpuSettings would both set the GPUs" in bench.stderr.replace("\n", " "), bench.stderr
