//! How many cases there were of each operation and each kind of call.

use std::collections::BTreeMap;

use vdsmstore_faults::Call;

#[derive(Clone, Copy, Default)]
struct Count {
    cases: u32,
    /// In which the fault happened.
    fired: u32,
    /// In which the operation succeeded nevertheless.
    succeeded: u32,
    /// That were judged wrong.
    failed: u32,
}

impl Count {
    fn and(self, other: Count) -> Count {
        Count {
            cases: self.cases + other.cases,
            fired: self.fired + other.fired,
            succeeded: self.succeeded + other.succeeded,
            failed: self.failed + other.failed,
        }
    }

    fn text(self) -> String {
        if self.cases == 0 {
            return "-".to_owned();
        }
        let failed = if self.failed > 0 { format!("!{}", self.failed) } else { String::new() };
        format!("{}/{}{failed}", self.fired, self.cases)
    }
}

#[derive(Default)]
pub struct Table(BTreeMap<(&'static str, Call), Count>);

impl Table {
    /// How often the fault happened, and whether the operation succeeded; None: the case failed.
    pub fn add(&mut self, operation: &'static str, call: Call, done: Option<(u64, bool)>) {
        let count = self.0.entry((operation, call)).or_default();
        count.cases += 1;
        match done {
            Some((fired, succeeded)) => {
                count.fired += u32::from(fired > 0);
                count.succeeded += u32::from(succeeded);
            }
            None => count.failed += 1,
        }
    }

    fn sum(&self, wanted: impl Fn(&'static str, Call) -> bool) -> Count {
        let of = self.0.iter().filter(|((operation, call), _)| wanted(operation, *call));
        of.fold(Count::default(), |sum, (_, count)| sum.and(*count))
    }

    pub fn failed(&self) -> u32 {
        self.sum(|_, _| true).failed
    }

    /// Fired and cases of each, and in how many the operation succeeded.
    pub fn print(&self, operations: impl Iterator<Item = &'static str>) {
        let short = |call: Call| match call {
            Call::MakeDirectory => "Mkdir".to_owned(),
            Call::SyncDirectory => "SyncDir".to_owned(),
            call => format!("{call:?}"),
        };
        let line = |name: &str, of: &dyn Fn(Call) -> String, rest: &str| {
            let cells: Vec<String> = Call::ALL.iter().map(|call| format!("{:>9}", of(*call))).collect();
            println!("{name:<33} {} {rest:>20}", cells.join(" "));
        };
        println!("faults that happened / cases; of all, how many operations succeeded");
        line("operation", &short, "all, succeeded");
        let all = |sum: Count| format!("{}, {}", sum.text(), sum.succeeded);
        for name in operations {
            let sum = self.sum(|operation, _| operation == name);
            let of = |call| self.0.get(&(name, call)).copied().unwrap_or_default().text();
            line(name, &of, &all(sum));
        }
        line("all", &|call| self.sum(|_, other| other == call).text(), &all(self.sum(|_, _| true)));
    }
}
