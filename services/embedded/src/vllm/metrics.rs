//! `/metrics` in the text of vLLM's Python front end: same names, labels, order and number format for what is simulated.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use super::routes::State;
use super::stats::{Histogram, Stats};

/// Requests at work, for `/load`.
pub(super) fn load(stats: &Stats) -> i64 {
    stats.running.load(Ordering::Acquire) + stats.waiting.load(Ordering::Acquire)
}

/// The whole page.
pub(super) fn render(state: &State) -> String {
    let stats = &state.engine.stats;
    let mut page = Page { out: String::new(), model: state.settings.model().to_owned(), created: state.started };
    page.process();
    let gauge = |value: &std::sync::atomic::AtomicI64| value.load(Ordering::Acquire) as f64;
    let count = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Acquire) as f64;
    page.gauge("num_requests_running", "Number of requests in model execution batches.", gauge(&stats.running));
    page.gauge("num_requests_waiting", "Number of requests waiting to be processed.", gauge(&stats.waiting));
    let room = state.settings.cache_blocks as f64 * f64::from(state.settings.block_size);
    let usage = if room > 0.0 { gauge(&stats.resident) / room } else { 0.0 };
    page.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", usage);
    let (prompt, cached) = (count(&stats.prompt_tokens), count(&stats.cached_tokens));
    page.counter(
        "prefix_cache_queries",
        "Prefix cache queries, in terms of number of queried tokens.",
        &[("", prompt)],
    );
    page.counter("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", &[("", cached)]);
    page.counter("num_preemptions", "Cumulative number of preemption from the engine.", &[("", 0.0)]);
    page.counter("prompt_tokens", "Number of prefill tokens processed.", &[("", prompt)]);
    page.counter(
        "prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        &[
            ("source=\"local_compute\"", prompt - cached),
            ("source=\"local_cache_hit\"", cached),
            ("source=\"external_kv_transfer\"", 0.0),
        ],
    );
    page.counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", &[("", cached)]);
    page.counter(
        "generation_tokens",
        "Number of generation tokens processed.",
        &[("", count(&stats.generation_tokens))],
    );
    page.counter(
        "request_success",
        "Count of successfully processed requests.",
        &[
            ("finished_reason=\"stop\"", count(&stats.stopped)),
            ("finished_reason=\"length\"", count(&stats.lengthy)),
            ("finished_reason=\"abort\"", 0.0),
            ("finished_reason=\"error\"", 0.0),
            ("finished_reason=\"repetition\"", 0.0),
        ],
    );
    page.rejections(count(&stats.rejected));
    page.histogram("request_prompt_tokens", "Number of prefill tokens processed.", &stats.request_prompt_tokens);
    page.histogram(
        "request_generation_tokens",
        "Number of generation tokens processed.",
        &stats.request_generation_tokens,
    );
    page.histogram(
        "time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        &stats.time_to_first_token,
    );
    page.histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", &stats.e2e_latency);
    page.histogram(
        "request_queue_time_seconds",
        "Histogram of time spent in WAITING phase for request.",
        &stats.queue_time,
    );
    page.out
}

struct Page {
    out: String,
    model: String,
    created: f64,
}

impl Page {
    /// What the client library says of the process itself.
    fn process(&mut self) {
        let (name, created) = ("process_start_time_seconds", number(self.created));
        let help = "Start time of the process since unix epoch in seconds.";
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {created}\n");
    }

    fn family(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.out, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n");
    }

    /// The labels in alphabetical order, as the client library writes them.
    fn labels(&self, extra: &str) -> String {
        let mut labels = vec!["engine=\"0\"".to_owned(), format!("model_name=\"{}\"", self.model)];
        if !extra.is_empty() {
            labels.push(extra.to_owned());
        }
        labels.sort();
        labels.join(",")
    }

    fn sample(&mut self, name: &str, extra: &str, value: f64) {
        let labels = self.labels(extra);
        let _ = writeln!(self.out, "vllm:{name}{{{labels}}} {}", number(value));
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, help, "gauge");
        self.sample(name, "", value);
    }

    /// A counter and the gauge that tells since when it counts.
    fn counter(&mut self, name: &str, help: &str, samples: &[(&str, f64)]) {
        let (total, created) = (format!("{name}_total"), format!("{name}_created"));
        self.family(&total, help, "counter");
        for (extra, value) in samples {
            self.sample(&total, extra, *value);
        }
        self.family(&created, help, "gauge");
        for (extra, _) in samples {
            self.sample(&created, extra, self.created);
        }
    }

    /// This one has no engine label.
    fn rejections(&mut self, rejected: f64) {
        let help = "Number of admission attempts rejected by a queue limit, by reason.";
        for (suffix, kind, values) in [("total", "counter", [rejected, 0.0]), ("created", "gauge", [self.created; 2])] {
            self.family(&format!("admission_rejections_{suffix}"), help, kind);
            for (reason, value) in ["max_num_queued_reqs", "max_num_queued_tokens"].iter().zip(values) {
                let (model, value) = (&self.model, number(value));
                let _ = writeln!(
                    self.out,
                    "vllm:admission_rejections_{suffix}{{model_name=\"{model}\",reason=\"{reason}\"}} {value}"
                );
            }
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        let (buckets, count, sum) = histogram.read();
        self.family(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        for (bound, value) in histogram.bounds.iter().zip(buckets) {
            self.sample(&bucket, &format!("le=\"{bound:?}\""), value as f64);
        }
        self.sample(&bucket, "le=\"+Inf\"", count as f64);
        self.sample(&format!("{name}_count"), "", count as f64);
        self.sample(&format!("{name}_sum"), "", sum);
        self.family(&format!("{name}_created"), help, "gauge");
        self.sample(&format!("{name}_created"), "", self.created);
    }
}

/// A number as Python's Prometheus client writes it: `930.0`, from a million on `1.368e+06`.
fn number(value: f64) -> String {
    let plain = format!("{value:?}");
    match plain.find('.') {
        Some(dot) if value > 0.0 && dot > 6 && !plain.contains('e') => {
            let digits = format!("{}.{}{}", &plain[..1], &plain[1..dot], &plain[dot + 1..]);
            format!("{}e+{:02}", digits.trim_end_matches(['0', '.']), dot - 1)
        }
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_in_the_captures() {
        let shown = [930.0, 0.0, 20000.0, 9.723_166_72e8, 1_795_324_228.94, 4_917_936_128.0].map(number);
        assert_eq!(shown, ["930.0", "0.0", "20000.0", "9.72316672e+08", "1.79532422894e+09", "4.917936128e+09"]);
    }
}
