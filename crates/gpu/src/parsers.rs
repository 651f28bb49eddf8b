//! Property tests of this crate's parsers; see `slipway_mutations`.

use std::path::Path;

use slipway_mutations::feed;

use crate::container::{cdi, runtime};
use crate::transformer::description::Config;
use crate::transformer::{Description, config};
use crate::{fit, mig, pci, process, settings, share, work};

#[test]
fn configurations_of_gpus_never_panic() {
    let valid = "version: v1\nmig-configs:\n  all-1g:\n    - device-filter: [\"0x233010DE\"]\n      devices: all\n      mig-enabled: true\n      mig-devices: {1g.10gb: 7}\n  off:\n    - devices: [0, 1]\n      mig-enabled: false\n";
    feed(&[valid], |text| {
        if let Ok(config) = mig::Config::parse(text) {
            let _ = config.configs.keys().filter(|name| config.layout(name).is_ok()).count();
        }
    });
    let valid = "version: v1\ngpuSettings:\n- {gpus: [0-3, H100], powerLimit: 80%, lockedClocks: {graphics: 1200-1410}, ecc: true}\n";
    feed(&[valid], |text| drop(settings::parse(text)));
    feed(&["3x1g.10gb + 1x3g.40gb", "7*1g.10gb+me,1g.10gb"], |text| drop(mig::parse(text)));
}

#[test]
fn runtime_configurations_never_panic() {
    let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("config");
    let options = runtime::Options { nvidia_runtime: Some("/usr/bin/nvidia-container-runtime".into()), default: true };
    let plan = |kind, text: &str| {
        std::fs::write(&path, text).unwrap();
        let Ok(edit) = runtime::plan(kind, &path, &options) else { return };
        std::fs::write(&path, &edit.after).unwrap();
        // The edit produces a file that it can read and that needs no further edit.
        let second = runtime::plan(kind, &path, &options);
        assert_eq!(second.unwrap().after, edit.after, "{text:?}");
    };
    let toml = "# ours\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"pause:3.9\"\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia]\n  runtime_type = \"x\"\n";
    feed(&[toml, "version = 3\nplugins = {}\n", "version = 4\r\nimports = [\"x*\"]\r\n"], |text| {
        plan(runtime::Runtime::Containerd, text)
    });
    feed(&["[crio.runtime]\ndefault_runtime = \"nvidia\"\n"], |text| plan(runtime::Runtime::Crio, text));
    feed(&["[engine]\nruntimes = {}\n"], |text| plan(runtime::Runtime::Podman, text));
    let template = "{{ if .X }}\nversion = 3\n{{ end }}\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  default_runtime_name = \"runc\"\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n  SystemdCgroup = {{ .SystemdCgroup }}\n";
    feed(&[template, "{{ template \"base\" . }}\n"], |text| plan(runtime::Runtime::K3s, text));
    let json = "{\n  \"log-driver\": \"journald\",\n  \"runtimes\": {\"nvidia\": {\"path\": \"/x\", \"args\": []}},\n  \"features\": {}\n}\n";
    feed(&[json, "{}", ""], |text| plan(runtime::Runtime::Docker, text));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn model_configurations_never_panic() {
    let dense = "{\"model_type\": \"gemma3\", \"text_config\": {\"hidden_size\": 64, \"num_hidden_layers\": 6, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"intermediate_size\": 128, \"vocab_size\": 99, \"sliding_window\": 8, \"layer_types\": null}, \"vision_config\": {\"hidden_size\": 8, \"num_hidden_layers\": 2, \"patch_size\": 2}}";
    let mixture = "{\"hidden_size\": 64, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, \"kv_lora_rank\": 8, \"qk_nope_head_dim\": 8, \"qk_rope_head_dim\": 4, \"v_head_dim\": 8, \"intermediate_size\": 128, \"vocab_size\": 99, \"n_routed_experts\": 8, \"num_experts_per_tok\": 2, \"first_k_dense_replace\": 1, \"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}}";
    let hybrid = "{\"model_type\": \"nemotron_h\", \"hidden_size\": 64, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"hybrid_override_pattern\": \"M*-\", \"mamba_num_heads\": 4, \"intermediate_size\": 128, \"vocab_size\": 99}";
    feed(&[dense, mixture, hybrid], |text| {
        let Ok(value) = config::parse(text, "config.json") else { return };
        let model =
            Description { config: Some(Config { source: "config.json".into(), value }), ..Description::default() };
        let card = Some("H200".into());
        if let Ok(estimate) = fit::fit(&fit::Request { model, card, gpus: Some(2), ..fit::Request::default() }) {
            assert!(estimate.bytes.is_finite() && estimate.bytes > 0.0, "{text}");
        }
    });
}

#[test]
fn other_parsers_never_panic() {
    let workloads = "workloads:\n  - {name: a, memory_gib: 4, compute: 0.2, duty: 0.5, count: 3}\n";
    feed(&[workloads], |text| drop(share::Workloads::parse(text)));
    feed(&["gemm:4096,4096,4096,bf16", "decode:model=7b,batch=1,context=4096,dtype=bf16"], |text| {
        drop(work::Work::parse(text));
    });
    feed(&["7b", "8x7b", "235b-a22b"], |text| {
        drop(Description::of_size(text).transformer());
        drop(Description::of_model(text).transformer());
    });
    let spec = "{\"cdiVersion\": \"0.6.0\", \"kind\": \"nvidia.com/gpu\", \"devices\": [{\"name\": \"0\", \"containerEdits\": {\"env\": [\"A=b\"]}}]}";
    feed(&[spec], |text| drop(cdi::check(text)));
    feed(&["0-3,8", "0-4294967295"], |text| drop(pci::parse_ranges(text)));
    feed(&["pci0000:3a/0000:3a:01.0/0000:3b:00.0"], |text| drop(pci::address_parts(Path::new(text))));
    let cgroup = "0::/kubepods.slice/kubepods-pod1234.slice/cri-containerd-abcdef.scope\n";
    feed(&[cgroup], |text| drop(process::from_cgroup(text)));
}
