//! These need a libonnxruntime: `SLIPWAY_ONNXRUNTIME=… cargo test -p slipway-serve onnxruntime -- --ignored --test-threads 1`.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::tensor::{Data, Tensor};
use crate::testing::{floats, folder, onnx, onnx_runtime, row};

/// Bytes of this process that are in memory (`man 5 proc_pid_statm`; a page is 4 KiB on the machines this runs on).
fn resident() -> usize {
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
fn a_model_is_in_memory_once_however_many_threads_run_it() {
    const SIZE: usize = 2048;
    let weights = SIZE * SIZE * 4;
    load(onnx::relu()); // the library itself is in memory before the measurement
    let before = resident();
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
    let grown = resident().saturating_sub(before);
    // Once as read and once as packed for the kernels, with room for allocators and for tests that run beside this one. A session
    // for each of 16 threads took 48 times the weights.
    assert!(grown < 8 * weights, "{grown} bytes for {weights} of weights");
}

#[test]
#[ignore = "needs libonnxruntime"]
fn threads_that_run_one_session_get_their_own_results() {
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
fn what_the_library_refuses_is_an_error() {
    let model = load(onnx::relu());
    let mut wrong = row(1.0);
    wrong[0].shape = vec![2, 1];
    assert!(model.run(&wrong).unwrap_err().to_string().starts_with("ONNX Runtime: "));
    assert!(model.run(&[]).unwrap_err().to_string().contains("0 inputs for a model of 1"));
    assert!(model.run(&row(1.0)).is_ok());
}

/// Prints calls a second, for comparing two versions of the code; it asserts nothing but that all calls succeed.
#[test]
#[ignore = "a measurement"]
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
            println!("{name}: {threads} threads, {} calls a second", calls.load(Relaxed) / 2);
        }
    }
}
