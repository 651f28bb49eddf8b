//! These tests need libonnxruntime: `SLIPWAY_ONNXRUNTIME=… cargo test -p slipway-serve onnxruntime -- --ignored --test-threads 1`.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::tensor::{Data, Tensor};
use crate::testing::{floats, folder, onnx, onnx_runtime, row};

/// Resident memory of this process in bytes (`man 5 proc_pid_statm`). Assumes pages of 4 KiB.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn load(model: Vec<u8>) -> std::sync::Arc<dyn crate::runtime::Model> {
    let folder = folder();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model).unwrap();
    onnx_runtime().load(&path).unwrap()
}

#[test]
#[ignore = "needs libonnxruntime"]
fn threads_share_one_copy_of_the_weights() {
    const SIZE: usize = 2048;
    let weights = SIZE * SIZE * 4;
    load(onnx::relu()); // load the library itself before the measurement
    let before = resident_bytes();
    let model = load(onnx::layers(SIZE as u64, 2));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let data = Data::Fp32(vec![1.0; SIZE]);
                let x = [Tensor { name: "x".into(), shape: vec![1, SIZE], data }];
                let y = model.run(&x).unwrap();
                assert!((floats(&y[0])[0] / 4.2 - 1.0).abs() < 0.01, "{}", floats(&y[0])[0]);
            });
        }
    });
    let growth = resident_bytes().saturating_sub(before);
    // The weights as read and as packed for the kernels, plus a margin for allocators and for tests that run in parallel. One session
    // for each of 16 threads took 48 times the weights.
    assert!(growth < 8 * weights, "{growth} bytes for {weights} of weights");
}

#[test]
#[ignore = "needs libonnxruntime"]
fn concurrent_calls_get_their_own_results() {
    let model = load(onnx::scale(3.0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let model = &model;
            scope.spawn(move || {
                for i in 0..5_000 {
                    let value = (thread * 10_000 + i) as f32;
                    let y = model.run(&row(value)).unwrap();
                    assert_eq!(floats(&y[0]), [3.0 * value, -3.0 * value]);
                }
            });
        }
    });
}

#[test]
#[ignore = "needs libonnxruntime"]
fn invalid_inputs_are_errors() {
    let model = load(onnx::relu());
    let mut invalid = row(1.0);
    invalid[0].shape = vec![2, 1];
    assert!(model.run(&invalid).unwrap_err().to_string().starts_with("ONNX Runtime: "));
    assert!(model.run(&[]).unwrap_err().to_string().contains("0 inputs for a model of 1"));
    assert!(model.run(&row(1.0)).is_ok());
}

#[test]
#[ignore = "needs libonnxruntime"]
fn strings_are_bytes_of_any_shape() {
    let model = load(onnx::identity_of_strings());
    assert_eq!((&model.inputs()[0].shape, &model.outputs()[0].shape), (&None, &None));
    let items: Vec<Vec<u8>> =
        vec![vec![0xff, 0xfe], b"a".to_vec(), vec![], b"\0x".to_vec(), "kö".into(), vec![7; 3000]];
    for (shape, items) in [(vec![2, 3], items.clone()), (vec![6], items), (vec![0, 3], vec![]), (vec![], vec![vec![0]])]
    {
        let x = [Tensor { name: "x".into(), shape: shape.clone(), data: Data::Bytes(items.clone()) }];
        let y = model.run(&x).unwrap();
        assert_eq!((&y[0].shape, &y[0].data), (&shape, &Data::Bytes(items)));
    }
}

/// A benchmark: prints calls per second, to compare two versions of the code.
#[test]
#[ignore = "benchmark"]
fn throughput() {
    for (name, model, size) in [("scale", onnx::scale(3.0), 2), ("layers", onnx::layers(256, 8), 256)] {
        let model = load(model);
        for threads in [1, 2, 4] {
            let (calls, stop) = (AtomicUsize::new(0), Instant::now() + Duration::from_secs(2));
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        let data = Data::Fp32(vec![1.0; size]);
                        let x = [Tensor { name: "x".into(), shape: vec![1, size], data }];
                        while Instant::now() < stop {
                            model.run(&x).unwrap();
                            calls.fetch_add(1, Relaxed);
                        }
                    });
                }
            });
            println!("{name}: {threads} threads, {} calls per second", calls.load(Relaxed) / 2);
        }
    }
}
