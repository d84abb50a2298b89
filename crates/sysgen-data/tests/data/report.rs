//! The page holds every row, whatever stands in it, and needs nothing else. How it looks and works in a
//! browser is checked by `scripts/check_report.py`.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde_json::Value;
use sysgen_data::open::DataSet;
use sysgen_data::report::report;

use crate::scripted::{Bench, bytes, data_dir, run};

/// The unpacked content of one of the page's elements.
fn embedded(page: &str, id: &str) -> Value {
    let start = format!("<script type=\"application/gzip\" id=\"{id}\">");
    let data = page
        .split_once(&start)
        .unwrap()
        .1
        .split_once("</script>")
        .unwrap()
        .0;
    let mut text = String::new();
    GzDecoder::new(STANDARD.decode(data).unwrap().as_slice())
        .read_to_string(&mut text)
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_page_holds_every_row_and_what_is_in_them_stays_text() {
    let bench = Bench::new();
    let rows: String = (0..300)
        .map(|i| format!("{{\"id\":\"r{i}\",\"question\":\"</script><b>{i}</b> <!--DATA-->\",\"answer\":\"한 {i}\"}}\n"))
        .collect();
    std::fs::write(bench.folder.path().join("rows.jsonl"), rows).unwrap();
    let config = bench.config("a & <b>", &[]);
    run(&config).unwrap();
    let data_set = DataSet::open(&data_dir(&config)).unwrap();
    let path = bench.folder.path().join("page.html");
    let reported = report(&data_set, &path).unwrap();
    let page = bytes(&path);
    assert_eq!((reported.rows, reported.bytes), (300, page.len() as u64));

    let mut in_page: Vec<Value> = Vec::new();
    for chunk in ["chunk-0", "chunk-1"] {
        in_page.extend(embedded(&page, chunk).as_array().unwrap().iter().cloned());
    }
    let in_file: Vec<Value> = bytes(&data_set.path)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(in_page, in_file);
    let index = embedded(&page, "index");
    assert_eq!(index["ids"].as_array().unwrap().len(), 300);
    assert_eq!(index["ids"][299], "r299");
    let overview = embedded(&page, "overview");
    assert_eq!(overview["statistics"]["rows"], 300);
    assert_eq!(overview["statistics"]["funnel"]["kept"], 300);
    assert!(!overview["throughput"].as_array().unwrap().is_empty());
    assert!(!page.contains("<b>299</b>"), "a question became markup");
    assert!(page.contains("<title>a &amp; &lt;b&gt; · SysGen data</title>"));
}

#[test]
fn the_page_needs_no_network() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    run(&config).unwrap();
    let path = bench.folder.path().join("page.html");
    report(&DataSet::open(&data_dir(&config)).unwrap(), &path).unwrap();
    let page = bytes(&path).replace("http://www.w3.org/2000/svg", "");
    for outside in ["http://", "https://", "url(", "@import", "fetch(", " src="] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("default-src 'none'"));
}
