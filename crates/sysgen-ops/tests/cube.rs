//! The device kernels against the CPU, on whatever Vulkan device there is: a graphics card or a software one.

use burn::tensor::{DType, Device, DeviceKind, DeviceType, Tensor, TensorData};
use sysgen_ops::{
    AttentionShape, Graph, PagedCache, PagedRun, PagedShape, StepInputs, StepNumbers, decide_tf32,
    parity, tf32_is_allowed,
};

fn device() -> Option<Device> {
    if Device::enumerate(DeviceType::Wgpu).is_empty() {
        eprintln!("SKIPPED: no Vulkan device, so no kernel was run");
        return None;
    }
    decide_tf32(false);
    Some(Device::wgpu(DeviceKind::DefaultDevice))
}

#[test]
fn kernels_agree_with_the_cpu() {
    let Some(device) = device() else { return };
    let operations = parity::operations().filter(|&op| {
        let runs = op != "paged_attention" || parity::has_one_plane_size(&device);
        if !runs {
            eprintln!("SKIPPED: {op}, since the planes of this device differ in size");
        }
        runs
    });
    let comparisons: Vec<_> = operations
        .flat_map(|op| parity::compare_operation(op, &device, DType::F32))
        .collect();
    for comparison in &comparisons {
        println!("{comparison}");
    }
    let failed: Vec<_> = comparisons.iter().filter(|c| !c.passes()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn the_cpu_agrees_with_itself() {
    for comparison in parity::compare(&Device::flex(), DType::F32) {
        assert!(comparison.error == 0.0, "{comparison}");
    }
}

/// One token that attends to itself alone gets its own value; its id is beside it.
#[test]
fn a_pass_is_recorded_or_refused_and_reads_the_newest_numbers_either_way() {
    let Some(device) = device() else { return };
    let paged = PagedShape {
        blocks: 3,
        block_size: 16,
        kv_heads: 1,
        head_size: 4,
    };
    let shape = AttentionShape {
        scale: 1.0,
        window: None,
        softcap: None,
    };
    let mut cache = PagedCache::new(paged, &device, DType::F32);
    let mut inputs = StepInputs::new(&cache, 1, 2, 3).unwrap();
    let pass = |inputs: &StepInputs, cache: &mut PagedCache, uploads: bool| {
        let [cos, sin] = inputs.angles();
        let mut row = Tensor::cat(vec![cos, sin], 2).reshape([1, 1, 4]);
        if uploads {
            let upload = TensorData::new(vec![0.0f32; 4], [1, 1, 4]);
            row = row + Tensor::from_data(upload, &device);
        }
        let step = inputs.step();
        cache.write(row.clone(), row.clone(), &step);
        let attended = cache.attend(row, &step, shape);
        let id = inputs.ids().float().reshape([1, 1, 1]);
        Tensor::cat(vec![attended, id], 2)
    };
    let numbers = |x: &Tensor<3>| x.clone().try_into_vec_as::<f32>().unwrap();
    // At the beginning of another block each time.
    let put = |inputs: &mut StepInputs, number: u32| {
        let first = number as f32;
        inputs.put(StepNumbers {
            ids: &[number],
            cos: &[first, 0.5],
            sin: &[0.25, -first],
            runs: &[PagedRun {
                tokens: 1,
                start: 0,
                blocks: &[number % 4],
            }],
        });
        vec![first, 0.5, 0.25, -first, first]
    };

    let expected = put(&mut inputs, 1);
    assert_eq!(numbers(&pass(&inputs, &mut cache, false)), expected);
    let refused = Graph::record(&inputs, || pass(&inputs, &mut cache, true));
    let reason = refused.err().unwrap();
    assert!(reason.contains("write"), "{reason}");
    let expected = put(&mut inputs, 2);
    assert_eq!(numbers(&pass(&inputs, &mut cache, false)), expected);

    let graph = Graph::record(&inputs, || pass(&inputs, &mut cache, false)).unwrap();
    for number in [2, 3, 5, 9] {
        let expected = put(&mut inputs, number);
        assert_eq!(numbers(graph.replay().unwrap()), expected);
    }
    let elsewhere = std::thread::scope(|scope| scope.spawn(|| graph.replay().err()).join());
    assert!(elsewhere.unwrap().unwrap().contains("thread"));
}

#[test]
fn what_was_first_said_about_tf32_stands() {
    decide_tf32(false);
    decide_tf32(true);
    assert!(!tf32_is_allowed());
}
