from __future__ import annotations
import sys, tempfile
from pathlib import Path
from benchmarks.load import Load
from benchmarks.runner import Runner
from benchmarks.scenarios import *
from benchmarks.targets import *
def main():
    with Load() as load, tempfile.TemporaryDirectory(dir=".") as d:
        r = Runner(load, Path(d).resolve(), [t for t in available() if not sys.argv[2:] or t.name in sys.argv[2:]], 2)
        for s in SCENARIOS:
            if not fnmatch.fnmatch(s.name, sys.argv[1]): continue
            t=time.time()
            res = r.run((s, s.toy), lambda: None)
            print(s.text(s.toy), round(time.time()-t,2))
            for row in res.rows:
                print("   ", row.name, row.reason or row.summary(s.unit), "cpu", row.of(lambda o:o.server_cpu), row.of(lambda o:o.client_cpu),"peak", row.of(lambda o:o.peak/1e6))
if __name__ == "__main__":
    main()
