//! Every card against its data sheet.

use super::*;

#[test]
fn every_line_of_cards_csv_is_parsed() {
    let lines = include_str!("cards.csv").lines().filter(|l| !l.starts_with('#')).count();
    let cards = cards();
    assert_eq!(cards.len(), lines, "a line cannot be parsed");
    assert!(cards.iter().all(|c| !c.source.is_empty() && c.peak(Precision::Fp32).is_some() && c.bandwidth() > 50.0));
    for card in &cards {
        assert_eq!(find(card.name).unwrap().name, card.name);
        // The driver keeps some memory for itself and for ECC. Sellers count GiB of boards and 10^9 bytes of HBM stacks.
        let gib = card.memory_mib as f64 / 1024.0;
        assert!((0.90..1.05).contains(&(gib / card.memory_gb as f64)), "{}: {gib} GiB", card.name);
    }
}

/// Dense peaks in TFLOP/s (TOP/s for int8) and GB/s as NVIDIA's data sheets and white papers state them. Where a sheet prints only the
/// rate with sparsity, half of it. NaN stands for a format that the sheet does not list.
#[test]
fn peaks_match_data_sheets() {
    const NONE: f64 = f64::NAN;
    // Card, fp64, fp32, tf32, fp16 or bf16, fp8, int8, fp4, memory bandwidth.
    let sheets: [(&str, [f64; 8]); 67] = [
        ("Quadro P4000", [NONE, 5.3, NONE, NONE, NONE, NONE, NONE, 243.0]),
        ("Tesla P40", [NONE, 12.0, NONE, NONE, NONE, NONE, NONE, 346.0]),
        ("Tesla P100-SXM2-16GB", [5.3, 10.6, NONE, 21.2, NONE, NONE, NONE, 732.0]),
        ("Tesla V100-SXM2-32GB", [7.8, 15.7, NONE, 125.0, NONE, NONE, NONE, 900.0]),
        ("Tesla V100-PCIE-16GB", [7.0, 14.0, NONE, 112.0, NONE, NONE, NONE, 900.0]),
        ("Tesla V100S-PCIE-32GB", [8.2, 16.4, NONE, 130.0, NONE, NONE, NONE, 1134.0]),
        ("Quadro GV100", [7.4, 14.8, NONE, 118.5, NONE, NONE, NONE, 870.0]),
        ("Tesla T4", [NONE, 8.1, NONE, 65.0, NONE, 130.0, NONE, 320.0]),
        ("Quadro RTX 6000", [NONE, 16.3, NONE, 130.5, NONE, 261.0, NONE, 672.0]),
        ("A2", [NONE, 4.5, 9.0, 18.0, NONE, 36.0, NONE, 200.0]),
        ("A10", [NONE, 31.2, 62.5, 125.0, NONE, 250.0, NONE, 600.0]),
        ("A10G", [NONE, 35.0, 35.0, 70.0, NONE, 140.0, NONE, 600.0]),
        ("A16", [NONE, 4.5, 9.0, 17.9, NONE, 35.9, NONE, 200.0]),
        ("A30", [10.3, 10.3, 82.0, 165.0, NONE, 330.0, NONE, 933.0]),
        ("A40", [NONE, 37.4, 74.8, 149.7, NONE, 299.3, NONE, 696.0]),
        ("A100-SXM4-80GB", [19.5, 19.5, 156.0, 312.0, NONE, 624.0, NONE, 2039.0]),
        ("A100-SXM4-40GB", [19.5, 19.5, 156.0, 312.0, NONE, 624.0, NONE, 1555.0]),
        ("A100 80GB PCIe", [19.5, 19.5, 156.0, 312.0, NONE, 624.0, NONE, 1935.0]),
        ("A800-SXM4-80GB", [19.5, 19.5, 156.0, 312.0, NONE, 624.0, NONE, 2039.0]),
        ("A800 80GB PCIe", [19.5, 19.5, 156.0, 312.0, NONE, 624.0, NONE, 1935.0]),
        ("RTX A2000", [NONE, 8.0, NONE, 31.9, NONE, NONE, NONE, 288.0]),
        ("RTX A2000 12GB", [NONE, 8.0, NONE, 31.9, NONE, NONE, NONE, 288.0]),
        ("RTX A4000", [NONE, 19.2, NONE, 76.7, NONE, NONE, NONE, 448.0]),
        ("RTX A4500", [NONE, 23.7, NONE, 94.6, NONE, NONE, NONE, 640.0]),
        ("RTX A5000", [NONE, 27.8, NONE, 111.1, NONE, NONE, NONE, 768.0]),
        ("RTX A5500", [NONE, 34.1, NONE, 136.4, NONE, NONE, NONE, 768.0]),
        ("RTX A6000", [NONE, 38.7, NONE, 154.8, NONE, NONE, NONE, 768.0]),
        ("GeForce RTX 3090", [NONE, 35.6, 35.6, 71.0, NONE, 284.0, NONE, 936.0]),
        ("L4", [NONE, 30.3, 60.0, 121.0, 242.5, 242.5, NONE, 300.0]),
        ("L20", [NONE, 59.8, 59.8, 119.5, 239.0, 239.0, NONE, 864.0]),
        ("L40", [NONE, 90.5, 90.5, 181.05, 362.0, 362.0, NONE, 864.0]),
        ("L40S", [NONE, 91.6, 183.0, 366.0, 733.0, 733.0, NONE, 864.0]),
        ("RTX 2000 Ada Generation", [NONE, 12.0, NONE, NONE, 95.9, NONE, NONE, 224.0]),
        // The sheet prints 327.6 with sparsity, which is taken as a misprint of 427.6.
        ("RTX 4000 Ada Generation", [NONE, 26.7, NONE, NONE, 213.8, NONE, NONE, 360.0]),
        ("RTX 4000 SFF Ada Generation", [NONE, 19.2, NONE, NONE, 153.4, NONE, NONE, 280.0]),
        ("RTX 4500 Ada Generation", [NONE, 39.6, NONE, NONE, 317.0, NONE, NONE, 432.0]),
        ("RTX 5000 Ada Generation", [NONE, 65.3, NONE, NONE, 522.2, NONE, NONE, 576.0]),
        ("RTX 5880 Ada Generation", [NONE, 69.3, NONE, NONE, 554.2, NONE, NONE, 960.0]),
        ("RTX 6000 Ada Generation", [NONE, 91.1, NONE, NONE, 728.5, NONE, NONE, 960.0]),
        ("GeForce RTX 4090", [NONE, 82.6, 82.6, 165.2, 330.3, 660.6, NONE, 1008.0]),
        ("RTX PRO 4000 Blackwell SFF Edition", [NONE, 24.0, NONE, NONE, NONE, NONE, 385.0, 432.0]),
        ("RTX PRO 2000 Blackwell", [NONE, 17.0, NONE, NONE, NONE, NONE, 272.5, 288.0]),
        ("H100 80GB HBM3", [67.0, 67.0, 494.5, 989.5, 1979.0, 1979.0, NONE, 3350.0]),
        ("H100 PCIe", [51.0, 51.0, 378.0, 756.0, 1513.0, 1513.0, NONE, 2039.0]),
        ("H100 NVL", [60.0, 60.0, 417.5, 835.5, 1671.0, 1671.0, NONE, 3938.0]),
        ("H800", [1.0, 67.0, 494.5, 989.5, 1979.0, 1979.0, NONE, 3350.0]),
        ("H800 PCIe", [0.8, 51.0, 378.0, 756.0, 1513.0, 1513.0, NONE, 2039.0]),
        ("H20", [1.0, 44.0, 74.0, 148.0, 296.0, 296.0, NONE, 4000.0]),
        ("H20-3e", [1.0, 44.0, 74.0, 148.0, 296.0, 296.0, NONE, 4000.0]),
        ("GH200 480GB", [67.0, 67.0, 494.5, 989.5, 1979.0, 1979.0, NONE, 4000.0]),
        ("GH200 144G HBM3e", [67.0, 67.0, 494.5, 989.5, 1979.0, 1979.0, NONE, 4900.0]),
        ("H200", [67.0, 67.0, 494.5, 989.5, 1979.0, 1979.0, NONE, 4800.0]),
        ("H200 NVL", [60.0, 60.0, 417.5, 835.5, 1671.0, 1671.0, NONE, 4800.0]),
        ("B200", [37.0, 75.0, 1125.0, 2250.0, 4500.0, 4500.0, 9000.0, 8000.0]),
        ("GB200", [40.0, 80.0, 1250.0, 2500.0, 5000.0, 5000.0, 10_000.0, 8000.0]),
        // HGX B300 states 10 TFLOP/s in fp64 for eight GPUs, rounded up from 9.3.
        ("B300", [1.2, 75.0, 1125.0, 2250.0, 4500.0, NONE, 13_500.0, 8000.0]),
        ("GB300", [1.25, 80.0, 1250.0, 2500.0, 5000.0, 157.0, 15_000.0, 8000.0]),
        ("GB10", [NONE, 31.0, NONE, NONE, NONE, NONE, 500.0, 273.0]),
        ("RTX PRO 6000 Blackwell Workstation Edition", [NONE, 125.0, NONE, 503.8, 1007.6, 1007.6, 2000.0, 1792.0]),
        ("RTX PRO 6000 Blackwell Max-Q Workstation Edition", [NONE, 110.0, NONE, 438.9, 877.9, 877.9, 1755.5, 1792.0]),
        ("RTX PRO 6000 Blackwell Server Edition", [NONE, 120.0, 234.0, NONE, NONE, NONE, NONE, 1597.0]),
        ("RTX PRO 5000 Blackwell", [NONE, 65.0, NONE, NONE, NONE, NONE, 1032.0, 1344.0]),
        ("RTX PRO 5000 72GB Blackwell", [NONE, 65.0, NONE, NONE, NONE, NONE, 1071.0, 1344.0]),
        ("RTX PRO 4500 Blackwell", [NONE, 51.0, NONE, NONE, NONE, NONE, 808.5, 896.0]),
        ("RTX PRO 4500 Blackwell Server Edition", [NONE, 51.0, 101.5, 203.0, 405.5, NONE, 800.0, 800.0]),
        ("RTX PRO 4000 Blackwell", [NONE, 37.0, NONE, NONE, NONE, NONE, 589.0, 672.0]),
        ("GeForce RTX 5090", [NONE, 104.8, 104.8, 209.5, 419.0, 838.0, 1676.0, 1792.0]),
    ];
    let formats = [
        Precision::Fp64,
        Precision::Fp32,
        Precision::Tf32,
        Precision::Fp16,
        Precision::Fp8,
        Precision::Int8,
        Precision::Fp4,
    ];
    for (name, stated) in sheets {
        let card = find(name).unwrap();
        assert_eq!(card.name, name);
        for (format, stated) in formats.into_iter().zip(stated).filter(|(_, stated)| !stated.is_nan()) {
            let peak = card.peak(format).unwrap_or_else(|| panic!("{name} has no {format}")).tera;
            // Sheets round to two or three digits: 1 TFLOP/s stands for 1.05.
            let close = (peak / stated - 1.0).abs() < 0.035 || (peak - stated).abs() < 0.06;
            assert!(close, "{name} {format}: {peak} is not {stated}");
        }
        let bandwidth = card.bandwidth();
        assert!((bandwidth / stated[7] - 1.0).abs() < 0.02, "{name}: {bandwidth} GB/s is not {}", stated[7]);
    }
    assert!(find("H100 80GB HBM3").unwrap().peak(Precision::Fp4).is_none());
}

#[test]
fn formula_contains_card_values() {
    let peak = find("A4000").unwrap().peak(Precision::Fp32).unwrap();
    assert_eq!(peak.formula, "48 SM x 128 cores x 2 operations x 1.560 GHz = 19.2 TFLOP/s");
}

#[test]
fn product_names_match_the_right_card() {
    let name = |text: &str| find(text).map(|c| c.name);
    for (reported, card) in [
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA GeForce RTX 3090", "GeForce RTX 3090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("Tesla V100-SXM2-32GB-LS", "Tesla V100-SXM2-32GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Blackwell Server Edition"),
        ("NVIDIA RTX PRO 4500 Blackwell Server Edition", "RTX PRO 4500 Blackwell Server Edition"),
        ("NVIDIA RTX A2000 12GB", "RTX A2000 12GB"),
        ("NVIDIA H20-3e", "H20-3e"),
        ("h100 sxm", "H100 80GB HBM3"),
        ("rtx a4000", "RTX A4000"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GH200 120GB", "GH200 480GB"),
        ("NVIDIA GeForce RTX 3080 Ti", "GeForce RTX 3080 Ti"),
    ] {
        assert_eq!(name(reported), Some(card), "{reported}");
    }
    for other in
        ["Radeon", "NVIDIA GeForce RTX 5090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10M", "", "sxm9"]
    {
        assert_eq!(name(other), None, "{other}");
    }
}

#[test]
fn a_short_name_lists_everything_it_can_mean() {
    let names = |text: &str| candidates(text).iter().map(|c| c.name).collect::<Vec<_>>();
    assert_eq!(names("h100"), ["H100 80GB HBM3", "H100 PCIe", "H100 NVL"]);
    assert_eq!(names("H200"), ["H200", "H200 NVL"]);
    assert_eq!(names("H200 NVL"), ["H200 NVL"]);
    assert_eq!(names("RTX PRO 6000").len(), 3);
    assert_eq!(names("H20"), ["H20", "H20-3e"]);
    assert_eq!(names("NVIDIA B300 SXM6 AC"), ["B300"]);
}

/// `nvidia-smi -q` of healthy machines (captures in NVIDIA's k8s-test-infra). A larger value would make acceptance warn about each of them.
#[test]
fn pcie_generations_are_no_higher_than_healthy_machines_report() {
    for (card, generation) in
        [("Tesla T4", 3), ("L40S", 4), ("H100 80GB HBM3", 5), ("B200", 5), ("GB200", 5), ("GB300", 6)]
    {
        assert_eq!(find(card).unwrap().pcie_generation, generation, "{card}");
    }
}

/// Dense bf16 peak over memory bandwidth, in operations per byte.
#[test]
fn ridges_follow_from_the_data_sheets() {
    for (card, ridge) in [("H100 80GB HBM3", 295.6), ("B200", 281.2)] {
        let roof = crate::roofline::Roofline::from_card(&find(card).unwrap());
        let actual = roof.ceiling(Precision::Bf16).unwrap().tera * 1000.0 / roof.main_memory().unwrap().gigabytes;
        assert!((actual / ridge - 1.0).abs() < 0.005, "{card}: {actual}");
    }
}
