from companion.bench.measure import main

main()
