"""What a confined process may read of the machine."""

from pathlib import Path

from hubbot.confine.places import environment_places


def test_a_program_of_another_environment_reads_the_python_that_it_was_made_of(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "bin").mkdir(parents=True)
    (base / "bin" / "real").write_text("")
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(base / "bin" / "real")
    assert {environment, base / "bin", base / "lib"} <= set(environment_places(environment))
    assert base not in environment_places(environment), "what lies beside it is nobody's business"
