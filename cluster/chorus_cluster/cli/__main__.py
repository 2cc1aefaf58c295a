from chorus_cluster.cli.main import main

main()
