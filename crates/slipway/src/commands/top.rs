//! `slipway top`: a live view of GPUs with history and processes, which can be sorted and filtered. The keys are those of k9s.

use std::collections::VecDeque;
use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Gauge, Paragraph, Row, Sparkline, Table};
use slipway_core::units;
use slipway_gpu::GpuError;
use slipway_gpu::inventory::{Gpu, Inventory, Severity};
use slipway_gpu::vendor;

use crate::Failure;
use crate::cli::gpu::Top;
use crate::output::print_text;

/// Number of samples that are kept for the graphs.
const HISTORY: usize = 240;

/// The sort order of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Memory,
    Busy,
    Pid,
    Gpu,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Memory => Self::Busy,
            Self::Busy => Self::Pid,
            Self::Pid => Self::Gpu,
            Self::Gpu => Self::Memory,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Busy => "busy",
            Self::Pid => "pid",
            Self::Gpu => "gpu",
        }
    }
}

/// The state of the screen.
struct Screen {
    inventory: Inventory,
    /// Utilization of each GPU in per cent, oldest sample first.
    busy: Vec<VecDeque<u64>>,
    /// Memory use of each GPU in per cent, oldest sample first.
    memory: Vec<VecDeque<u64>>,
    /// Index of the selected GPU.
    selected: usize,
    /// Index of the only GPU that is shown; `None` shows all.
    focused: Option<usize>,
    sort: Sort,
    filter: String,
    /// Whether keys edit the filter.
    editing_filter: bool,
}

impl Screen {
    fn new(inventory: Inventory) -> Self {
        let mut screen = Self {
            busy: vec![VecDeque::new(); inventory.gpus.len()],
            memory: vec![VecDeque::new(); inventory.gpus.len()],
            inventory: Inventory { gpus: Vec::new(), ..inventory.clone() },
            selected: 0,
            focused: None,
            sort: Sort::Memory,
            filter: String::new(),
            editing_filter: false,
        };
        screen.add_sample(inventory);
        screen
    }

    /// Adds a sample to the history.
    fn add_sample(&mut self, inventory: Inventory) {
        let push = |list: &mut VecDeque<u64>, value: u64| {
            if list.len() == HISTORY {
                list.pop_front();
            }
            list.push_back(value);
        };
        for (i, gpu) in inventory.gpus.iter().enumerate().take(self.busy.len()) {
            push(&mut self.busy[i], u64::from(gpu.utilization_percent.unwrap_or(0)));
            push(&mut self.memory[i], memory_percent(gpu));
        }
        self.inventory = inventory;
    }

    /// Handles a key. Returns false if the program should quit.
    fn handle_key(&mut self, code: KeyCode, control: bool) -> bool {
        if self.editing_filter {
            match code {
                KeyCode::Enter => self.editing_filter = false,
                KeyCode::Esc => {
                    self.editing_filter = false;
                    self.filter.clear();
                }
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) if !control => self.filter.push(c),
                _ => {}
            }
            return true;
        }
        let last = self.inventory.gpus.len().saturating_sub(1);
        match code {
            KeyCode::Char('q') => return false,
            KeyCode::Char('c') if control => return false,
            KeyCode::Char('j') | KeyCode::Down => self.selected = (self.selected + 1).min(last),
            KeyCode::Char('k') | KeyCode::Up => self.selected = self.selected.saturating_sub(1),
            KeyCode::Char('g') | KeyCode::Home => self.selected = 0,
            KeyCode::Char('G') | KeyCode::End => self.selected = last,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/') => self.editing_filter = true,
            KeyCode::Enter => self.focused = Some(self.selected),
            KeyCode::Esc if self.focused.is_some() => self.focused = None,
            KeyCode::Esc => self.filter.clear(),
            _ => {}
        }
        true
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let shown: Vec<usize> = match self.focused {
            Some(one) => vec![one],
            None => (0..self.inventory.gpus.len()).collect(),
        };
        let desired =
            u16::try_from(shown.len()).unwrap_or(u16::MAX).saturating_mul(if self.focused.is_some() { 9 } else { 3 });
        let max = frame.area().height.saturating_sub(8).max(3);
        let [head, gpus, processes, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(desired.min(max)),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let i = &self.inventory;
        let mut title = vec![Span::styled(" slipway top ", Style::new().add_modifier(Modifier::REVERSED))];
        let cuda = if i.cuda.is_empty() { String::new() } else { format!("CUDA {}  ", i.cuda) };
        title.push(Span::raw(format!(" driver {}  {cuda}{} GPUs ", i.driver, i.gpus.len())));
        if i.simulated {
            title.push(Span::styled(" SIMULATED ", Style::new().fg(Color::Black).bg(Color::Yellow)));
        }
        frame.render_widget(Paragraph::new(Line::from(title)), head);
        let each = if self.focused.is_some() { 9 } else { 3 };
        // Scroll so that the selected GPU is visible.
        let fit = usize::from(gpus.height / each).max(1);
        let first = if self.focused.is_some() { 0 } else { (self.selected + 1).saturating_sub(fit) };
        for (line, index) in shown.iter().skip(first).take(fit).enumerate() {
            let y = gpus.y + u16::try_from(line).unwrap_or(0) * each;
            let area = Rect { y, height: each.min(gpus.bottom().saturating_sub(y)), ..gpus };
            self.draw_gpu(frame, area, *index);
        }
        self.draw_processes(frame, processes, &shown);
        let text = if self.editing_filter {
            format!(" filter: {}_", self.filter)
        } else {
            let filter = if self.filter.is_empty() { String::new() } else { format!("  filter: {}", self.filter) };
            format!(" j k select  enter one  esc back  s sort: {}  / filter  q quit{filter}", self.sort.name())
        };
        frame.render_widget(Paragraph::new(text).style(Style::new().fg(Color::DarkGray)), foot);
    }

    fn draw_gpu(&self, frame: &mut Frame<'_>, area: Rect, index: usize) {
        let gpu = &self.inventory.gpus[index];
        let marked = index == self.selected && self.focused.is_none();
        let style = if marked { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
        let worst = gpu.findings.iter().map(|f| f.severity).max();
        let colour = match worst {
            Some(Severity::Error) => Color::Red,
            Some(Severity::Warning) => Color::Yellow,
            _ => Color::Green,
        };
        let [name, bars, graph] =
            Layout::horizontal([Constraint::Length(34), Constraint::Length(34), Constraint::Min(10)]).areas(area);
        let watts =
            gpu.power_watts.map_or("-".into(), |w| format!("{w:.0}/{:.0} W", gpu.power_limit_watts.unwrap_or(0.0)));
        let degrees = gpu.temperature_celsius.map_or("-".into(), |t| format!("{t} °C"));
        let clock = gpu.clock_sm_mhz.map_or("-".into(), |c| format!("{c} MHz"));
        let mut lines = vec![
            Line::from(vec![
                Span::styled(if marked { ">" } else { " " }, style),
                Span::styled(format!("{index} "), Style::new().fg(colour)),
                Span::styled(gpu.name.trim_start_matches("NVIDIA ").to_owned(), style),
            ]),
            Line::from(format!("   {watts}  {degrees}  {clock}")),
        ];
        let throttle: Vec<&str> = gpu.throttle.iter().copied().filter(|t| *t != "idle").collect();
        if !throttle.is_empty() {
            lines.push(Line::styled(format!("   throttled: {}", throttle.join(", ")), Style::new().fg(Color::Yellow)));
        }
        for finding in gpu.findings.iter().take(if self.focused.is_some() { 4 } else { 0 }) {
            lines.push(Line::styled(format!("   {}", finding.what), Style::new().fg(colour)));
        }
        frame.render_widget(Paragraph::new(lines), name);
        let gauge = |label: String, percent: u64, colour| {
            Gauge::default()
                .ratio(percent.min(100) as f64 / 100.0)
                .label(label)
                .gauge_style(Style::new().fg(colour).bg(Color::DarkGray))
        };
        let [first, second, _] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(0)]).areas(bars);
        let busy = gpu.utilization_percent;
        let inset = |r: Rect| Rect { width: r.width.saturating_sub(2), ..r };
        frame.render_widget(
            gauge(busy.map_or("busy -".into(), |b| format!("busy {b} %")), busy.unwrap_or(0).into(), Color::Green),
            inset(first),
        );
        let gib = |b: Option<u64>| b.unwrap_or(0) as f64 / f64::from(1 << 30);
        frame.render_widget(
            gauge(
                format!("memory {:.1}/{:.1} GiB", gib(gpu.memory_used), gib(gpu.memory_total)),
                memory_percent(gpu),
                Color::Blue,
            ),
            inset(second),
        );
        if self.focused.is_some() {
            let [up, down] = Layout::vertical([Constraint::Length(4), Constraint::Length(4)]).areas(graph);
            self.graph(frame, up, &self.busy[index], " busy ", Color::Green);
            self.graph(frame, down, &self.memory[index], " memory ", Color::Blue);
        } else {
            let height = graph.height.min(2);
            self.graph(frame, Rect { height, ..graph }, &self.busy[index], "", Color::Green);
        }
    }

    fn graph(&self, frame: &mut Frame<'_>, area: Rect, history: &VecDeque<u64>, title: &'static str, colour: Color) {
        let shown = usize::from(area.width);
        let data: Vec<u64> = history.iter().skip(history.len().saturating_sub(shown)).copied().collect();
        let mut line = Sparkline::default().data(&data).max(100).style(Style::new().fg(colour));
        if !title.is_empty() {
            line = line.block(Block::default().title(title));
        }
        frame.render_widget(line, area);
    }

    /// Table rows of processes: GPU, pid, user, memory, utilization, pod or container, command.
    fn rows(&self, shown: &[usize]) -> Vec<[String; 7]> {
        let mut all: Vec<_> =
            shown.iter().flat_map(|i| self.inventory.gpus[*i].processes.iter().map(move |p| (*i, p))).collect();
        match self.sort {
            Sort::Memory => all.sort_by_key(|(i, p)| (std::cmp::Reverse(p.memory_bytes), *i)),
            Sort::Busy => all.sort_by_key(|(i, p)| (std::cmp::Reverse(p.sm_percent), *i)),
            Sort::Pid => all.sort_by_key(|(i, p)| (p.pid, *i)),
            Sort::Gpu => all.sort_by_key(|(i, p)| (*i, p.pid)),
        }
        let row = |(i, p): (usize, &slipway_gpu::inventory::Process)| {
            let container = p.owner.pod.clone().or_else(|| p.owner.container.clone()).unwrap_or_default();
            [
                i.to_string(),
                p.pid.to_string(),
                p.owner.user.clone(),
                p.memory_bytes.map_or("-".into(), units::bytes),
                p.sm_percent.map_or("-".into(), |s| format!("{s} %")),
                container,
                p.owner.command.clone(),
            ]
        };
        let filter = self.filter.to_lowercase();
        all.into_iter()
            .map(row)
            .filter(|r| filter.is_empty() || r.iter().any(|c| c.to_lowercase().contains(&filter)))
            .collect()
    }

    fn draw_processes(&self, frame: &mut Frame<'_>, area: Rect, shown: &[usize]) {
        let head = ["GPU", "PID", "USER", "MEMORY", "BUSY", "POD OR CONTAINER", "COMMAND"];
        let rows = self.rows(shown);
        let table = Table::new(
            rows.into_iter().map(|r| Row::new(r.map(Cell::from))),
            [
                Constraint::Length(4),
                Constraint::Length(8),
                Constraint::Length(10),
                Constraint::Length(11),
                Constraint::Length(6),
                Constraint::Length(20),
                Constraint::Min(10),
            ],
        )
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::default().title(" processes "));
        frame.render_widget(table, area);
    }
}

/// The share of a GPU's memory that is in use, in per cent.
fn memory_percent(gpu: &Gpu) -> u64 {
    match (gpu.memory_used, gpu.memory_total) {
        (Some(used), Some(total)) if total > 0 => used * 100 / total,
        _ => 0,
    }
}

pub(super) fn run(options: Top) -> Result<(), Failure> {
    let library = vendor::find(options.fixture.as_deref().filter(|f| !f.is_empty()))?;
    let mut screen = Screen::new(library.inventory()?);
    if options.once {
        print_text(&render_text(&screen, 120, 30));
        return Ok(());
    }
    let io = |source| GpuError::Io { what: "the terminal".into(), source };
    let result = (|| -> Result<(), GpuError> {
        let mut terminal = ratatui::try_init().map_err(io)?;
        loop {
            terminal.draw(|frame| screen.draw(frame)).map_err(io)?;
            let until = std::time::Instant::now() + Duration::from_millis(options.interval);
            loop {
                let remaining = until.saturating_duration_since(std::time::Instant::now());
                if !event::poll(remaining).map_err(io)? {
                    break;
                }
                if let Event::Key(key) = event::read().map_err(io)?
                    && key.kind == KeyEventKind::Press
                {
                    if !screen.handle_key(key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
                        return Ok(());
                    }
                    terminal.draw(|frame| screen.draw(frame)).map_err(io)?;
                }
            }
            screen.add_sample(library.inventory()?);
        }
    })();
    let _ = ratatui::try_restore(); // An error means that the terminal is gone, and nothing can be restored.
    match result {
        // The screen was piped to a program that stopped reading.
        Err(GpuError::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Renders a screen as text.
fn render_text(screen: &Screen, width: u16, height: u16) -> String {
    let backend = ratatui::backend::TestBackend::new(width, height);
    let Ok(mut terminal) = ratatui::Terminal::new(backend);
    let Ok(_) = terminal.draw(|frame| screen.draw(frame));
    let buffer = terminal.backend().buffer();
    let line = |y| {
        let cells: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        cells.trim_end().to_owned() + "\n"
    };
    (0..height).map(line).collect()
}

#[cfg(test)]
mod tests {
    use slipway_gpu::inventory::Process;
    use slipway_gpu::process::Owner;

    use super::*;

    fn machine(step: u32) -> Inventory {
        let gpu = |index: u32, busy: u32, processes: Vec<Process>| Gpu {
            index,
            name: "NVIDIA H100 80GB HBM3".into(),
            memory_total: Some(80 << 30),
            memory_used: Some(u64::from(busy) << 29),
            utilization_percent: Some(busy),
            power_watts: Some(f64::from(70 + busy * 6)),
            power_limit_watts: Some(700.0),
            temperature_celsius: Some(32 + busy / 3),
            clock_sm_mhz: Some(1980),
            processes,
            ..Gpu::default()
        };
        let process = |pid: u32, gib: u64, sm: u32, user: &str, command: &str| Process {
            pid,
            memory_bytes: Some(gib << 30),
            gpu_instance: None,
            sm_percent: Some(sm),
            owner: Owner { user: user.into(), command: command.into(), container: None, pod: None },
        };
        Inventory {
            simulated: true,
            driver: "580.95.05".into(),
            nvml: "13".into(),
            cuda: "13.0".into(),
            gpus: vec![
                gpu(
                    0,
                    (step * 13) % 100,
                    vec![process(812, 31, 97, "ada", "train.py"), process(77, 2, 1, "root", "monitor")],
                ),
                gpu(1, 0, vec![process(4040, 40, 0, "bob", "notebook")]),
            ],
        }
    }

    fn screen() -> Screen {
        let mut screen = Screen::new(machine(0));
        (1..40).for_each(|step| screen.add_sample(machine(step)));
        screen
    }

    #[test]
    fn frames_match_their_snapshots() {
        let mut screen = screen();
        insta::assert_snapshot!("all", render_text(&screen, 100, 20));
        screen.handle_key(KeyCode::Enter, false);
        insta::assert_snapshot!("one", render_text(&screen, 100, 20));
        screen.handle_key(KeyCode::Esc, false);
        insta::assert_snapshot!("small", render_text(&screen, 60, 12));
    }

    #[test]
    fn processes_are_sorted_and_filtered() {
        let mut screen = screen();
        let pids = |s: &Screen| s.rows(&[0, 1]).into_iter().map(|r| r[1].clone()).collect::<Vec<_>>();
        assert_eq!(pids(&screen), ["4040", "812", "77"]);
        screen.handle_key(KeyCode::Char('s'), false);
        assert_eq!(pids(&screen), ["812", "77", "4040"]);
        screen.handle_key(KeyCode::Char('s'), false);
        assert_eq!(pids(&screen), ["77", "812", "4040"]);
        for c in ['/', 'A', 'd', 'a'] {
            screen.handle_key(KeyCode::Char(c), false);
        }
        assert_eq!(pids(&screen), ["812"]);
        screen.handle_key(KeyCode::Esc, false);
        assert_eq!(pids(&screen).len(), 3);
    }

    #[test]
    fn keys_move_the_selection_and_quit() {
        let mut screen = screen();
        for key in ['j', 'j', 'j'] {
            assert!(screen.handle_key(KeyCode::Char(key), false));
        }
        assert_eq!(screen.selected, 1);
        screen.handle_key(KeyCode::Char('g'), false);
        assert_eq!(screen.selected, 0);
        assert!(!screen.handle_key(KeyCode::Char('q'), false));
        assert!(!screen.handle_key(KeyCode::Char('c'), true));
    }
}
