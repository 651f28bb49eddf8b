//! The node agent resets GPUs after faults: simulated GPUs, and a program in the place of nvidia-smi, below the root of the driver.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Request, Running, Sandbox, wait_until};

/// What the program in the place of nvidia-smi does: it records its arguments, and the driver requires no action any more.
const NVIDIA_SMI: &str = "#!/bin/sh\necho \"$@\" >>\"$SLIPWAY_TEST_RESETS\"\n\
    sed -i '/^action 5/d' \"$SLIPWAY_FAKE_NVML_CONTROL\"\n";

struct Agent {
    sandbox: Sandbox,
    address: String,
    _running: Running,
}

impl Agent {
    /// An agent of a machine with eight GPUs, of which processes use the first five.
    fn start(options: &[&str]) -> Self {
        let mut sandbox = Sandbox::new();
        let path = |name: &str| sandbox.folder().join(name).display().to_string();
        let (control, resets, root) = (path("control"), path("resets"), path("driver"));
        let (kubelet, cdi, mps) = (path("kubelet"), path("cdi"), path("mps"));
        sandbox.set("SLIPWAY_FAKE_NVML_CONTROL", &control);
        sandbox.set("SLIPWAY_TEST_RESETS", &resets);
        sandbox.set("SLIPWAY_GPU_FIXTURE", "h100x8");
        sandbox.write("control", "");
        let program = sandbox.write("driver/usr/bin/nvidia-smi", NVIDIA_SMI);
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let folders = ["--kubelet-dir", &kubelet, "--cdi-dir", &cdi, "--mps-root", &mps, "--driver-root-here", &root];
        let words =
            [&["node", "run", "--no-kube", "--recover-after", "1", "--listen", &address], &folders[..], options]
                .concat();
        let running = Running::start(sandbox.command(&words));
        let agent = Self { sandbox, address, _running: running };
        wait_until("the GPUs are healthy", || agent.is_healthy(5).filter(|healthy| *healthy));
        agent
    }

    fn is_healthy(&self, gpu: u32) -> Option<bool> {
        let url = format!("http://{}/metrics", self.address);
        let request = Request { method: "GET", url, headers: Vec::new(), body: Vec::new() };
        let text = request.send().ok()?.text();
        let is_of_gpu =
            |line: &&str| line.starts_with("slipway_gpu_healthy") && line.contains(&format!("gpu=\"{gpu}\""));
        text.lines().find(is_of_gpu).map(|line| line.ends_with(" 1"))
    }

    fn resets(&self) -> Option<String> {
        std::fs::read_to_string(self.sandbox.folder().join("resets")).ok()
    }
}

#[test]
fn agent_resets_an_idle_gpu_after_a_fault_and_never_one_in_use() {
    let agent = Agent::start(&["--reset-on-fault"]);
    // GPU 0 is in use; the fault of GPU 7 needs a reboot.
    agent.sandbox.write("control", "xid 0 48\nxid 7 79\nxid 5 48\naction 5 1\naction 0 1\naction 7 2\n");
    wait_until("GPU 5 is reset", || agent.resets());
    wait_until("GPU 5 is healthy again", || agent.is_healthy(5).filter(|healthy| *healthy));
    assert_eq!(agent.resets().unwrap(), "--gpu-reset -i 00000000:60:00.0\n");
    // It is counted on disk, so an agent that was started again counts it too.
    let history = std::fs::read_to_string(agent.sandbox.home().join("node/gpu-resets.json")).unwrap();
    assert!(history.starts_with("{\"GPU-") && history.matches("GPU-").count() == 1, "{history}");
}

#[test]
fn agent_resets_nothing_unless_it_is_allowed() {
    let agent = Agent::start(&[]);
    agent.sandbox.write("control", "xid 5 48\naction 5 1\n");
    wait_until("GPU 5 is unhealthy", || agent.is_healthy(5).filter(|healthy| !healthy));
    agent.sandbox.write("control", "xid 5 48\n");
    wait_until("GPU 5 recovers without a reset", || agent.is_healthy(5).filter(|healthy| *healthy));
    assert_eq!(agent.resets(), None);
}
