"""An app whose next release is chosen by a file: what is in it is read when the code is loaded."""

SOURCE = '''
import faulthandler, os, time
from pathlib import Path
from flask import Flask, abort
from flask_stability import StabilityExt

RELEASE = (Path("release").read_text().strip() if Path("release").exists() else "good")
app = Flask(__name__)
StabilityExt(app)
hung, kept = set(), []

def busy(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass

def view(number):
    def answer():
        if RELEASE == "fails" or (RELEASE == "one" and number == 7) or (
                RELEASE == "later" and Path("later").exists()):
            raise KeyError("price")
        if RELEASE == "segv" and number == 7:
            faulthandler._sigsegv()
        if RELEASE == "hangs" and number not in hung:
            hung.add(number)
            time.sleep(600)
        if RELEASE == "leaks":
            kept.append(bytearray(os.urandom(1)) * (2 << 20))
        if RELEASE.startswith("noisy") and os.urandom(1)[0] < 3:
            abort(500)
        time.sleep(0.004 * (5 if RELEASE == "slow" else 1))
        busy(0.0005 * (5 if RELEASE == "slow" else 1))
        return {"release": RELEASE, "pid": os.getpid()}
    return answer

for number in range(20):
    app.add_url_rule(f"/r{number}", f"r{number}", view(number))
'''

PATHS = [f"/r{number}" for number in range(20)]
