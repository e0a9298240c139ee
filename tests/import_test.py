"""What ``import mujax`` brings, and what it does not need."""

import subprocess
import sys

from absl.testing import absltest, parameterized


class ImportTest(parameterized.TestCase):
    @parameterized.named_parameters(
        (
            "nothing_is_imported_before_its_use",
            "assert not {'sklearn', 'scipy.stats', 'mujax.auditing'} & {*sys.modules}",
        ),
        (
            "auditing_needs_no_import_of_its_own",
            "assert mujax.auditing.forget_efficacy; assert 'sklearn' in sys.modules",
        ),
        ("auditing_is_listed", "assert 'auditing' in dir(mujax)"),
        ("other_names_are_missing", "assert not hasattr(mujax, 'auditor')"),
        *(
            (
                f"without_{package}",
                f"sys.modules['{package}'] = None\n"
                "try: mujax.auditing\n"
                "except ImportError as error: assert 'pip install mujax[auditing]' in "
                f"str(error) and 'needs {package}' in str(error), error\n"
                "else: raise AssertionError",
            )
            for package in ("sklearn", "scipy")
        ),
    )
    def test_in_a_fresh_process(self, code):
        command = [sys.executable, "-c", f"import sys, mujax\n{code}"]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    absltest.main()
