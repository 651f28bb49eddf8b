"""Compares slipway's GPU code with NVIDIA's own tools, without a GPU.

    python run.py --slipway target/release/slipway [--nvidia-ctk PATH] [SUBSTRING ...] [--list] [--junit FILE]

With `--nvidia-ctk` its responses are recorded anew in `recorded/`; without, the recordings are used.

* `nvidia-ml-py`, NVIDIA's Python binding, reads the fake NVML of every fixture. This verifies the fake's ABI, on which
  slipway's own tests depend. The values are compared with `slipway gpu ls`.
* NVRTC compiles the benchmarks' kernels for every architecture from Pascal to Blackwell.
* `nvidia-ctk cdi generate` and `slipway gpu cdi generate` give the same specification for the same machine, and the CDI
  project's own Go library validates slipway's. That result too is recorded, and valid only for the same specification.
* `nvidia-ctk runtime configure` and `slipway gpu container configure` add the same runtime to the same configuration of containerd,
  CRI-O and Docker.
"""

import contextlib
import ctypes
import glob
import inspect
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "conformance"))
from recorded import Recordings, module_version
from suite import Skip, Suite

SUITE = Suite("gpu")
FIXTURES = ["t4", "a4000", "a100x8", "h100x8", "h200x8", "b200x8", "gb200x4", "l40sx4"]
DRIVER = "580.95.05"
# Hooks that nvidia-ctk writes and slipway does not, each with its reason.
LEFT_OUT_HOOKS = {
    "update-application-profile": "for OpenGL programs; slipway mounts no graphics libraries",
    "apply-cuda-memory-limits": "new in 1.20, needs a memory-limit file that only its own runtime writes",
}


def read_with_nvml():
    """Prints the values that NVIDIA's binding reads. Runs in a separate process, with the fake as libnvidia-ml.so.1."""
    import pynvml as n

    n.nvmlInit()
    machine = {"driver": n.nvmlSystemGetDriverVersion(), "cuda": n.nvmlSystemGetCudaDriverVersion_v2(), "gpus": []}
    for i in range(n.nvmlDeviceGetCount()):
        h = n.nvmlDeviceGetHandleByIndex(i)
        assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(h))) == i
        assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(h).busId)) == i
        memory = n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2)
        try:
            mig, _ = n.nvmlDeviceGetMigMode(h)
        except n.NVMLError_NotSupported:
            mig = None
        links = 0
        try:
            while n.nvmlDeviceGetNvLinkState(h, links) == 1:
                links += 1
        except (n.NVMLError_InvalidArgument, n.NVMLError_NotSupported):
            pass
        instances = []
        if mig:
            for k in range(n.nvmlDeviceGetMaxMigDeviceCount(h)):
                try:
                    m = n.nvmlDeviceGetMigDeviceHandleByIndex(h, k)
                except n.NVMLError_NotFound:
                    continue
                a = n.nvmlDeviceGetAttributes_v2(m)
                instances.append([n.nvmlDeviceGetUUID(m), n.nvmlDeviceGetGpuInstanceId(m), a.multiprocessorCount, a.memorySizeMB])
        machine["gpus"].append({
            "name": n.nvmlDeviceGetName(h), "uuid": n.nvmlDeviceGetUUID(h), "serial": n.nvmlDeviceGetSerial(h),
            "compute_capability": ".".join(map(str, n.nvmlDeviceGetCudaComputeCapability(h))), "cores": n.nvmlDeviceGetNumGpuCores(h),
            "bus_width_bits": n.nvmlDeviceGetMemoryBusWidth(h), "memory_total": memory.total, "memory_used": memory.used,
            "clock_sm_max_mhz": n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM), "power_limit_watts": n.nvmlDeviceGetEnforcedPowerLimit(h) / 1000,
            "temperature_slowdown_celsius": n.nvmlDeviceGetTemperatureThreshold(h, n.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
            "bus_id": n.nvmlDeviceGetPciInfo(h).busId.lower(), "pcie_width": n.nvmlDeviceGetCurrPcieLinkWidth(h), "nvlinks": links,
            "processes": sorted([p.pid, p.usedGpuMemory] for p in n.nvmlDeviceGetComputeRunningProcesses(h)),
            "mig": mig, "instances": sorted(instances),
        })
    n.nvmlShutdown()
    print(json.dumps(machine))


def fake_nvml(slipway):
    return os.path.join(os.path.dirname(slipway), "libslipway_fake_nvml.so")


def binding(slipway, fixture):
    """`nvidia-ml-py` and `slipway gpu ls` read the same values."""
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(fake_nvml(slipway), os.path.join(folder, "libnvidia-ml.so.1"))
        state = os.path.join(folder, "state.json")
        environment = {**os.environ, "LD_LIBRARY_PATH": folder, "SLIPWAY_FAKE_NVML_FIXTURE": fixture, "SLIPWAY_FAKE_NVML_STATE": state}
        run = lambda *command: subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        if fixture in ("a100x8", "h200x8", "b200x8"):
            large = {"a100x8": "3g.40gb", "h200x8": "3g.71gb", "b200x8": "3g.90gb"}[fixture]
            run(slipway, "gpu", "mig", "apply", f"2x{large}", "--gpus", "1", "--yes", "--fixture", fixture)
        theirs = json.loads(run(sys.executable, __file__, READ))
        ours = json.loads(run(slipway, "gpu", "ls", "-o", "json", "--fixture", fixture))
    assert ours["driver"] == theirs["driver"] and len(ours["gpus"]) == len(theirs["gpus"])
    for a, b in zip(ours["gpus"], theirs["gpus"]):
        for key in ("name", "uuid", "serial", "compute_capability", "cores", "bus_width_bits", "memory_total", "memory_used", "clock_sm_max_mhz",
                    "power_limit_watts", "temperature_slowdown_celsius", "bus_id"):
            assert a[key] == b[key], (key, a[key], b[key])
        assert a["pcie"]["width"] == b["pcie_width"] and len(a["nvlinks"]) == b["nvlinks"]
        assert sorted([p["pid"], p["memory_bytes"]] for p in a["processes"]) == b["processes"]
        mine = sorted([d["uuid"], d["gpu_instance"], d["multiprocessors"], d["memory_mib"]] for d in (a["mig"] or {"devices": []})["devices"])
        assert mine == b["instances"], (mine, b["instances"])
    print(f"     {len(theirs['gpus'])} GPUs")


for fixture in FIXTURES:
    SUITE.add(f"nvidia-ml-py reads {fixture} as slipway does", lambda options, fixture=fixture: binding(options.slipway, fixture))


@SUITE.test
def kernels_compile_from_pascal_to_blackwell(options):
    library = glob.glob(os.path.join(sys.prefix, "lib/python*/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))[0]
    nvrtc = ctypes.CDLL(library)
    source = (ROOT / "crates/gpu/src/bench/kernels.cu").read_bytes()
    names = {"fill", "fma_fp32", "fma_fp64", "memory_read", "memory_write", "memory_copy", "memory_triad", "l2_read", "shared_read", "nothing",
             "pattern_write", "pattern_check", "compare"}
    for architecture in (61, 70, 75, 80, 86, 89, 90, 100, 120):
        program = ctypes.c_void_p()
        assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None) == 0
        options = (ctypes.c_char_p * 2)(f"--gpu-architecture=compute_{architecture}".encode(), b"--std=c++14")
        status = nvrtc.nvrtcCompileProgram(program, 2, options)
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        assert status == 0, f"compute_{architecture}: {log.value.decode()}"
        nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
        ptx = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetPTX(program, ptx)
        found = {line.split("(")[0].split()[-1] for line in ptx.value.decode().splitlines() if line.startswith(".visible .entry")}
        assert found == names, found ^ names


def machine(folder, fake):
    """Creates the files of an installed driver; all are empty except the library that nvidia-ctk loads."""
    root = pathlib.Path(folder, "root")
    lib = root / "usr/lib/x86_64-linux-gnu"
    for path in ["usr/bin/nvidia-smi", "usr/bin/nvidia-cuda-mps-control", "usr/bin/nvidia-cuda-mps-server", "usr/bin/nvidia-debugdump", "usr/bin/nvidia-persistenced",
                 f"lib/firmware/nvidia/{DRIVER}/gsp_tu10x.bin", f"lib/firmware/nvidia/{DRIVER}/gsp_ga10x.bin", "etc/keep",
                 *(f"usr/lib/x86_64-linux-gnu/{name}.so.{DRIVER}" for name in
                   ("libcuda", "libnvidia-ptxjitcompiler", "libcudadebugger", "libnvidia-nvvm", "libnvidia-opencl", "libnvidia-cfg", "libnvidia-gpucomp"))]:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.chmod(0o755)
    (lib / "libcuda.so.1").symlink_to(f"libcuda.so.{DRIVER}")
    (lib / f"libnvidia-ml.so.{DRIVER}").write_bytes(pathlib.Path(fake).read_bytes())
    (lib / "libnvidia-ml.so.1").symlink_to(f"libnvidia-ml.so.{DRIVER}")
    (root / "dev").mkdir()
    # Neither tool opens the devices, so any character device works.
    for name in ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", *(f"nvidia{i}" for i in range(8))]:
        os.mknod(root / "dev" / name, 0o666 | 0o020000, os.makedev(1, 3))
    return root


def fixture_file(fixture):
    """What the fake NVML reports, and so a part of the request to everything that reads it."""
    return (ROOT / f"testkit/fake-nvml/fixtures/{fixture}.yaml").read_text()


def cdi(options, fixture):
    """`nvidia-ctk` and slipway describe the same machine identically."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.mknod(os.path.join(folder, "null"), 0o666 | 0o020000, os.makedev(1, 3))
        except OSError as error:
            raise Skip(f"device nodes cannot be created here ({error})")
    with tempfile.TemporaryDirectory() as folder:
        root = machine(folder, fake_nvml(options.slipway))
        environment = {**os.environ, "SLIPWAY_FAKE_NVML_FIXTURE": fixture}
        parsed = lambda text: yaml.safe_load(text.replace(str(root), "<root>"))
        arguments = ["cdi", "generate", "--mode=nvml", "--nvidia-cdi-hook-path=/usr/bin/nvidia-cdi-hook"]
        generate = lambda: parsed(subprocess.run([options.nvidia_ctk, "--quiet", *arguments, f"--driver-root={root}"], env=environment, check=True, capture_output=True, text=True).stdout)
        theirs = options.recordings.response(f"generate {fixture}", [arguments, fixture_file(fixture), inspect.getsource(machine)], generate)
        specification = pathlib.Path(folder, "nvidia.yaml")
        subprocess.run([options.slipway, "gpu", "cdi", "generate", "--root", str(root), "--hook", "/usr/bin/nvidia-cdi-hook", "--write", str(specification), "--fixture", fixture], check=True, capture_output=True)
        ours = parsed(specification.read_text())

        def validated():
            """nvidia-ctk reads and validates slipway's specification with the CDI project's own Go library, and lists its devices."""
            listed = subprocess.run([options.nvidia_ctk, "cdi", "list", "--spec-dir", folder], capture_output=True, text=True, check=True)
            assert "registry errors" not in listed.stderr, listed.stderr
            return sorted(line for line in listed.stdout.splitlines() if "=" in line)

        names = set(options.recordings.response(f"list {fixture}", ours, validated))
        assert ours["kind"] == theirs["kind"]
        assert names == {f"{ours['kind']}={d['name']}" for d in ours["devices"]}, names
        nodes = lambda edits: sorted((n["path"], n.get("hostPath")) for n in edits.get("deviceNodes", []))
        devices = lambda spec: {d["name"]: nodes(d["containerEdits"]) for d in spec["devices"]}
        assert devices(ours) == devices(theirs), (devices(ours), devices(theirs))
        a, b = ours["containerEdits"], theirs["containerEdits"]
        assert nodes(a) == nodes(b), (nodes(a), nodes(b))
        assert sorted(a["env"]) == sorted(b["env"]), (a["env"], b["env"])
        mounts = lambda edits: sorted((m["hostPath"], m["containerPath"], tuple(m["options"])) for m in edits["mounts"])
        mine, other = set(mounts(a)), set(mounts(b))
        assert mine == other, sorted(mine ^ other)
        hooks = lambda edits: sorted((h["hookName"], h["path"], tuple(h["args"]), tuple(h.get("env", []))) for h in edits["hooks"] if h["args"][1] not in LEFT_OUT_HOOKS)
        assert hooks(a) == hooks(b), (hooks(a), hooks(b))
        print(f"     {len(theirs['devices'])} devices, {len(mine)} mounts, {len(hooks(a))} hooks ({len(LEFT_OUT_HOOKS)} known hooks left out)")


for fixture in ("t4", "h100x8"):
    SUITE.add(f"nvidia-ctk and slipway describe {fixture} identically", lambda options, fixture=fixture: cdi(options, fixture))


# Settings of a runtime that nvidia-ctk writes if there is no other runtime to copy. They are containerd's defaults, and containerd 2 no
# longer has the first two and warns about them.
DEFAULTS = {"runtime_root": "", "runtime_engine": "", "privileged_without_host_devices": False}
RUNC = """[plugins."{plugin}".containerd.runtimes.runc]
runtime_type = "{kind}"
privileged_without_host_devices = true
pod_annotations = ["example.com/*"]
[plugins."{plugin}".containerd.runtimes.runc.options]
BinaryName = "/usr/bin/runc"
SystemdCgroup = true
"""
V1, V2, V3 = "cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
NVIDIA_RUNTIME = "/usr/bin/nvidia-container-runtime"
CONTAINERD = {
    "empty": "",
    "version 1": RUNC.format(plugin=V1, kind="io.containerd.runc.v2"),
    "version 2": "version = 2\n" + RUNC.format(plugin=V2, kind="io.containerd.runc.v2"),
    "version 3": "version = 3\n" + RUNC.format(plugin=V3, kind="io.containerd.runc.v2"),
    "version 4": "version = 4\n" + RUNC.format(plugin=V3, kind="io.containerd.runc.v2"),
    "without a type": "version = 2\n" + RUNC.format(plugin=V2, kind=""),
    "crun": ("version = 2\n" + RUNC.format(plugin=V2, kind="io.containerd.runc.v2")).replace("runc", "crun"),
    "another default": f'version = 3\n[plugins."{V3}".containerd]\ndefault_runtime_name = "kata"\n' + RUNC.format(plugin=V3, kind="x").replace("runtimes.runc", "runtimes.kata")
    + RUNC.format(plugin=V3, kind="y"),
    "nvidia is the default": f'version = 2\n[plugins."{V2}".containerd]\ndefault_runtime_name = "nvidia"\n[plugins."{V2}".containerd.runtimes.nvidia.options]\nBinaryName = "/old"\n'
    + RUNC.format(plugin=V2, kind="io.containerd.runc.v2"),
}
CRIO = {
    "empty": "",
    "crun": '[crio.runtime]\ndefault_runtime = "crun"\n[crio.runtime.runtimes.crun]\nruntime_path = "/usr/bin/crun"\nmonitor_path = "/usr/bin/conmon"\nallowed_annotations = ["a"]\n',
}
DOCKER = {"empty": "{}", "others": '{"log-driver": "journald", "runtimes": {"x": {"path": "/x"}}, "features": {}}'}


def configured(options, runtime, name, text, default):
    """Both tools add NVIDIA's runtime to the same file."""
    file = {"containerd": "config.toml", "crio": "crio.conf", "docker": "daemon.json"}[runtime]
    arguments = ["runtime", "configure", f"--runtime={runtime}", f"--nvidia-runtime-path={NVIDIA_RUNTIME}"] + (["--nvidia-set-as-default"] if default else [])
    read = json.loads if runtime == "docker" else tomllib.loads
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        path, drop_in = folder / file, folder / ("daemon.json" if runtime == "docker" else "drop-in/99-nvidia.toml")

        def respond():
            """Only the drop-in is NVIDIA's; version 1 of containerd and Docker have none."""
            path.write_text(text)
            where = [f"--config={path}"] + ([f"--drop-in-config={drop_in}"] if runtime != "docker" else [])
            subprocess.run([options.nvidia_ctk, "--quiet", *arguments, *where], check=True, capture_output=True)
            return read(drop_in.read_text())

        theirs = options.recordings.response(f"configure {runtime} {name}{' default' if default else ''}", [arguments, text], respond)
        path.write_text(text)
        command = [options.slipway, "gpu", "container", "configure", "--runtime", runtime, "--config", str(path), "--nvidia-runtime", NVIDIA_RUNTIME, "--yes"]
        subprocess.run(command + (["--set-default"] if default else []), check=True, capture_output=True)
        ours = read(path.read_text())

    def added(document):
        if runtime == "docker":
            return document["runtimes"]["nvidia"], document.get("default-runtime")
        if runtime == "crio":
            table = document["crio"]["runtime"]
            return table["runtimes"]["nvidia"], table.get("default_runtime")
        [table] = [plugin["containerd"] for plugin in document["plugins"].values() if "containerd" in plugin]
        runtime_table = table["runtimes"]["nvidia"]
        return {key: value for key, value in runtime_table.items() if DEFAULTS.get(key) != value}, table.get("default_runtime_name")

    mine, other = added(ours), added(theirs)
    if runtime == "crio" and not default:
        # nvidia-ctk writes a new file, in which the default runtime of crio.conf is not repeated.
        mine = (mine[0], other[1])
    assert mine == other, (mine, other)


for runtime, cases in (("containerd", CONTAINERD), ("crio", CRIO), ("docker", DOCKER)):
    for name, text in cases.items():
        for default in (False, True):
            SUITE.add(
                f"nvidia-ctk and slipway configure {runtime} identically: {name}{', as the default' if default else ''}",
                lambda options, arguments=(runtime, name, text, default): configured(options, *arguments),
            )


@SUITE.test
def every_recording_belongs_to_a_case(options):
    if options.names:
        raise Skip("not all cases were run")
    assert not (complaints := options.recordings.finish()), complaints


# Runs `read_with_nvml` in this process.
READ = "--read"


def main():
    if sys.argv[1:] == [READ]:
        return read_with_nvml()
    options = SUITE.options(__doc__, slipway={"default": "target/release/slipway"}, nvidia_ctk={"help": "the original, which is then run and recorded anew"})
    options.slipway = os.path.abspath(options.slipway)
    version = module_version(ROOT / "conformance/originals.txt", "nvidia-container-toolkit/cmd/nvidia-ctk")
    options.recordings = Recordings(ROOT / "conformance/gpu/recorded", f"nvidia-ctk {version}", live=bool(options.nvidia_ctk))
    return SUITE.main(options, lambda _: contextlib.nullcontext(options))


if __name__ == "__main__":
    sys.exit(main())
