"""One job, or with -m a grid of jobs."""


def main() -> None:
    from wq.main import main as run

    run()
