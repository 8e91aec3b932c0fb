"""`python -m anomaly_detector_ros` is the console script `anomaly-detector`."""

from anomaly_detector_ros.cli.main import main

if __name__ == "__main__":
    main()
